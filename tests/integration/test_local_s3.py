"""Features of the local AWS's S3 that the platform relies on: conditions, listings, versions, surviving kill -9."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import duckdb
import pytest
from own_aws import Server, code_of, started

from busco.embedded import aws, keys, processes
from busco.lake.engine import extension_file


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    """A state folder; if a test starts a local AWS there, it is stopped after the test."""
    yield tmp_path / "state"
    processes.stop((tmp_path / "state").resolve(), aws.NAME)
    processes.release_port((tmp_path / "state").resolve(), aws.NAME)


@pytest.fixture
def lake(server: Server) -> str:
    return os.environ["BUSCO_LAKE_BUCKET"]


# S3 --------------------------------------------------------------------------------------------------------------


def test_if_none_match_refuses_to_replace_an_object(server: Server, lake: str) -> None:
    s3 = server.client("s3")
    s3.put_object(Bucket=lake, Key="once", Body=b"first", IfNoneMatch="*")
    again = code_of(lambda: s3.put_object(Bucket=lake, Key="once", Body=b"second", IfNoneMatch="*"))
    assert again == "PreconditionFailed"
    assert s3.get_object(Bucket=lake, Key="once")["Body"].read() == b"first"


def test_if_match_writes_only_over_the_object_that_was_read(server: Server, lake: str) -> None:
    s3 = server.client("s3")
    first = s3.put_object(Bucket=lake, Key="swapped", Body=b"1")["ETag"]
    s3.put_object(Bucket=lake, Key="swapped", Body=b"2", IfMatch=first)
    late = code_of(lambda: s3.put_object(Bucket=lake, Key="swapped", Body=b"3", IfMatch=first))
    assert late == "PreconditionFailed"
    assert s3.get_object(Bucket=lake, Key="swapped")["Body"].read() == b"2"


def test_if_match_creates_no_object(server: Server, lake: str) -> None:
    s3 = server.client("s3")
    assert code_of(lambda: s3.put_object(Bucket=lake, Key="none", Body=b"1", IfMatch='"0"')) == "NoSuchKey"


@pytest.mark.parametrize("swap", [False, True], ids=["creation", "swap"])
def test_only_one_of_sixteen_conditional_writers_succeeds(server: Server, lake: str, swap: bool) -> None:
    s3 = server.client("s3")
    for attempt in range(5):
        key = f"race/{swap}/{attempt}"
        condition = {"IfNoneMatch": "*"}
        if swap:
            condition = {"IfMatch": s3.put_object(Bucket=lake, Key=key, Body=b"base")["ETag"]}
        assert won(s3, lake, key, condition) == 1


def won(s3: Any, bucket: str, key: str, condition: dict[str, str]) -> int:
    """Returns how many of sixteen concurrent writers succeeded; the object must be a successful writer's."""
    start = threading.Barrier(16)

    def write(number: int) -> int | None:
        start.wait(10)
        body = f"writer {number}".encode()
        result = code_of(lambda: s3.put_object(Bucket=bucket, Key=key, Body=body, **condition))
        assert result in ("ok", "PreconditionFailed", "ConditionalRequestConflict")
        return number if result == "ok" else None

    with ThreadPoolExecutor(16) as pool:
        winners = [number for number in pool.map(write, range(16)) if number is not None]
    assert s3.get_object(Bucket=bucket, Key=key)["Body"].read() == f"writer {winners[0]}".encode()
    return len(winners)


def test_a_listing_has_pages_in_the_order_of_keys(server: Server, lake: str) -> None:
    s3 = server.client("s3")
    keys = [f"paged/{number:03d}" for number in range(25)]
    for key in reversed(keys):
        s3.put_object(Bucket=lake, Key=key, Body=b"")
    pages = s3.get_paginator("list_objects_v2").paginate(
        Bucket=lake, Prefix="paged/", PaginationConfig={"PageSize": 10}
    )
    found = [[entry["Key"] for entry in page["Contents"]] for page in pages]
    assert [len(page) for page in found] == [10, 10, 5]
    assert [key for page in found for key in page] == keys


@pytest.mark.parametrize("key", ["k" * 1024, "é" * 512, "a/" + "%" * 1022, "日" * 341 + "+"])
def test_a_key_of_more_than_1024_bytes_is_refused(server: Server, lake: str, key: str) -> None:
    s3 = server.client("s3")
    assert len(key.encode()) == 1024
    s3.put_object(Bucket=lake, Key=key, Body=b"1")
    assert s3.get_object(Bucket=lake, Key=key)["Body"].read() == b"1"
    long = {"Bucket": lake, "Key": f"{key}x"}
    for call in (
        lambda: s3.put_object(**long, Body=b"1"),
        lambda: s3.put_object(**long, Body=b"1", IfNoneMatch="*"),
        lambda: s3.create_multipart_upload(**long),
        lambda: s3.copy_object(**long, CopySource={"Bucket": lake, "Key": key}),
        lambda: s3.get_object(**long),
    ):
        assert code_of(call) == "KeyTooLongError"
    assert code_of(lambda: s3.head_object(**long)) == "400"
    found = [one["Key"] for one in s3.list_objects_v2(Bucket=lake, Prefix=key)["Contents"]]
    assert found == [key]


def test_the_landing_bucket_keeps_overwritten_versions(server: Server) -> None:
    s3, bucket = server.client("s3"), os.environ["BUSCO_LANDING_BUCKET"]
    old = s3.put_object(Bucket=bucket, Key="shop/orders/a.csv", Body=b"old")["VersionId"]
    new = s3.put_object(Bucket=bucket, Key="shop/orders/a.csv", Body=b"new")["VersionId"]
    assert old != new
    assert s3.get_object(Bucket=bucket, Key="shop/orders/a.csv", VersionId=old)["Body"].read() == b"old"
    assert s3.get_object(Bucket=bucket, Key="shop/orders/a.csv")["Body"].read() == b"new"


def test_duckdb_writes_and_reads_parquet_on_the_local_s3(server: Server, lake: str) -> None:
    with duckdb.connect(":memory:", config={"autoinstall_known_extensions": "false"}) as connection:
        connection.execute(f"LOAD '{extension_file('httpfs')}'")
        endpoint, pair = server.endpoint.removeprefix("http://"), keys.owner(server.settings.state)
        connection.execute(
            f"CREATE SECRET (TYPE S3, KEY_ID '{pair.key}', SECRET '{pair.secret}', ENDPOINT '{endpoint}', "
            "URL_STYLE 'path', USE_SSL false)"
        )
        # More than one part of a multipart upload.
        connection.execute(f"COPY (SELECT random() AS x FROM range(3_000_000)) TO 's3://{lake}/duck/a=1/é.parquet'")
        assert connection.execute(f"SELECT count(*) FROM 's3://{lake}/duck/*/*.parquet'").fetchall() == [(3_000_000,)]


# persistence -----------------------------------------------------------------------------------------------------


def test_objects_versions_and_conditions_outlive_kill_9(state: Path) -> None:
    server = started(state)
    lake, landing = os.environ["BUSCO_LAKE_BUCKET"], os.environ["BUSCO_LANDING_BUCKET"]
    s3 = server.client("s3")
    key = "silver/orders/prod-v1/day=a%2Fb=c %25x/é+1.parquet"
    etag = s3.put_object(Bucket=lake, Key=key, Body=b"data", Metadata={"run": "r1"})["ETag"]
    old = s3.put_object(Bucket=landing, Key="a.csv", Body=b"old")["VersionId"]
    s3.put_object(Bucket=landing, Key="a.csv", Body=b"new")
    port = server.endpoint.rpartition(":")[2]
    server.kill()

    server = started(state)
    s3 = server.client("s3")
    assert server.endpoint.rpartition(":")[2] == port
    head = s3.head_object(Bucket=lake, Key=key)
    assert (head["ETag"], head["ContentLength"], head["Metadata"]) == (etag, 4, {"run": "r1"})
    assert s3.get_object(Bucket=landing, Key="a.csv", VersionId=old)["Body"].read() == b"old"
    assert "VersionId" in s3.put_object(Bucket=landing, Key="a.csv", Body=b"newer")
    assert code_of(lambda: s3.put_object(Bucket=lake, Key=key, Body=b"x", IfNoneMatch="*")) == "PreconditionFailed"
    assert won(s3, lake, key, {"IfMatch": etag}) == 1


# Writes "old", overwrites it with "new", and kills itself before its n-th change of the file system during the second
# write; prints "whole" if there is no n-th change. With n = 0, it loads the state as the local AWS does when it starts.
WRITE = """
import json, os, pathlib, signal, sys
from busco.embedded import s3_intents
state, fatal = pathlib.Path(sys.argv[1]), int(sys.argv[2])
os.environ.update(S3_PERSIST="1", S3_DATA_DIR=str(state / "s3"))
s3_intents.repair(state / "intents")
from ministack.services import s3
s3_intents.install(s3, state / "intents")
if fatal:
    assert s3._create_bucket("bucket", b"", {})[0] == 200
    if len(sys.argv) > 3:
        s3._bucket_versioning["bucket"] = "Enabled"
    s3._put_object("bucket", "k", b"old", {})
    seen = 0
    def audit(event, _):
        global seen
        if event in ("os.rename", "os.remove", "open"):
            seen += 1
            if seen == fatal:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(audit)
    s3._put_object("bucket", "k", b"new, longer", {})
    in_memory = [v["data"] for v in s3._object_versions.get(("bucket", "k")) or [] if v["data"] is not None]
    assert not in_memory, in_memory
    print("whole")
else:
    found = s3._buckets["bucket"]["objects"]["k"]
    versions = s3._object_versions.get(("bucket", "k")) or []
    bodies = [s3._version_body(s3._buckets["bucket"], "bucket", "k", v).decode() for v in versions]
    body = s3._read_body("bucket", "k", found)
    print(json.dumps([body.decode(), found["etag"].strip('"') == s3.md5_hash(body), found["size"], bodies]))
"""


@pytest.mark.parametrize("versioned", [False, True], ids=["plain", "versioned"])
def test_a_write_killed_at_any_step_leaves_the_old_or_the_new_object_with_its_etag(
    tmp_path: Path, versioned: bool
) -> None:
    environment = {**os.environ, "LOG_LEVEL": "ERROR"}

    def run(folder: Path, fatal: int) -> str:
        command = [sys.executable, "-c", WRITE, str(folder), str(fatal), *(["versioned"] if versioned else [])]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        return done.stdout.strip()

    def outcome(fatal: int) -> tuple[bool, str]:
        folder = tmp_path / str(fatal)
        whole = run(folder, fatal) == "whole"
        body, etag_fits, size, bodies = json.loads(run(folder, 0))
        assert etag_fits, f"killed before step {fatal}"
        assert size == len(body)
        assert bodies == ([] if not versioned else ["old"] if body == "old" else ["old", "new, longer"])
        return whole, body

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(outcome, range(1, 17)))
    kept = [body for _, body in results]
    assert [whole for whole, _ in results].count(True) > 0, "increase the number of steps"
    assert sorted(kept, key=lambda body: body != "old") == kept
    assert {"old", "new, longer"} == set(kept)
