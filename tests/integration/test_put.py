"""`busco put` uploads files to the folders of their tables, and waits for what the events service records."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from busco.ingest import uploads
from busco.ingest.files import find
from busco.ingest.orders import carry_out
from busco.ingest.uploads import Uploaded, past_orders, results
from busco.lake.layout import ingest_order
from busco.lake.records import Arrival, IngestOrder, utc_now
from busco.projects import all_contracts
from busco.warehouse.dbt import ensure_manifests
from tests.integration.test_landing import CONTENT, OTHER, Landing
from tests.platforms import Platform


@pytest.fixture
def bucket(mini: Platform) -> Landing:
    return Landing(mini)


def keys(bucket: Landing) -> dict[str, bytes]:
    found = bucket.s3.list_objects_v2(Bucket=bucket.bucket).get("Contents", [])
    return {one["Key"]: bucket.s3.get_object(Bucket=bucket.bucket, Key=one["Key"])["Body"].read() for one in found}


def test_files_are_uploaded_unchanged_below_the_folders_of_their_tables(
    mini: Platform, bucket: Landing, tmp_path: Path
) -> None:
    (tmp_path / "in/day 1").mkdir(parents=True)
    (tmp_path / "in/day 1/orders-é.csv").write_bytes(CONTENT)
    (tmp_path / "in/orders.csv.gz").write_bytes(gzip.compress(OTHER, mtime=0))
    (tmp_path / "in/link.csv").symlink_to("/etc/passwd")
    printed = mini.busco("put", "--until", "uploaded", str(tmp_path / "in"), status=1)
    assert keys(bucket) == {
        "bronze/orders/day 1/orders-é.csv": CONTENT,
        "bronze/orders/orders.csv.gz": gzip.compress(OTHER, mtime=0),
    }
    assert "uploaded 2 files" in printed
    assert "link.csv: it is a link" in printed
    # the name of a single file says nothing: the table is given
    (tmp_path / "a.csv").write_bytes(CONTENT)
    mini.busco("put", "--until", "uploaded", "--table", "orders", str(tmp_path / "a.csv"))
    assert "bronze/orders/a.csv" in keys(bucket)


def test_two_files_with_one_key_are_not_both_uploaded(mini: Platform, bucket: Landing, tmp_path: Path) -> None:
    for folder, body in (("a", CONTENT), ("b", OTHER)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "orders.csv").write_bytes(body)
    given = [str(tmp_path / folder) for folder in ("a", "b")]
    # the same file twice is one file
    printed = mini.busco("put", "--until", "uploaded", *given, str(tmp_path / "a/orders.csv"), status=1)
    assert (
        f"refused: {tmp_path}/b/orders.csv: {tmp_path}/a/orders.csv has the same name in the landing bucket" in printed
    )
    assert "uploaded 1 file " in printed
    assert keys(bucket) == {"bronze/orders/orders.csv": CONTENT}


def test_nothing_is_uploaded_if_nothing_would_ingest_it(
    mini: Platform, bucket: Landing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "orders.csv").write_bytes(CONTENT)
    monkeypatch.setenv("BUSCO_ENVIRONMENT", "dev")
    assert "only in the prod environment" in mini.busco("put", str(tmp_path), status=1)
    monkeypatch.delenv("BUSCO_ENVIRONMENT")
    monkeypatch.setenv("BUSCO_LISTEN", "false")
    assert "the events service is turned off" in mini.busco("put", str(tmp_path), status=1)
    assert keys(bucket) == {}
    monkeypatch.setenv("BUSCO_LISTEN", "true")
    # the service is not running, so the time ends
    printed = mini.busco("put", "--timeout", "1", str(tmp_path), status=1)
    assert "the time to wait for 1 file to be ingested is over" in printed


def test_a_large_file_is_uploaded_in_parts(
    mini: Platform, bucket: Landing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "_IN_ONE_REQUEST", 10)
    (tmp_path / "orders.csv").write_bytes(CONTENT)
    contracts = all_contracts(ensure_manifests(mini.settings))
    files, _ = find([tmp_path], contracts, None)
    done: list[int] = []
    (uploaded,), unread = uploads.upload(bucket.s3, bucket.bucket, files, tmp_path, done.append)
    assert not unread
    assert sum(done) == uploaded.size == len(CONTENT)
    assert uploaded.version == bucket.s3.head_object(Bucket=bucket.bucket, Key=uploaded.key)["VersionId"]


def test_the_result_is_that_of_the_uploaded_version_and_of_a_new_order(
    mini: Platform, bucket: Landing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "_LOOK_EVERY", 0.01)
    contracts = all_contracts(ensure_manifests(mini.settings))
    (tmp_path / "orders.csv").write_bytes(CONTENT)
    (file,), _ = find([tmp_path], contracts, None)
    key = "bronze/orders/orders.csv"

    def order(number: int, version: str, carried_out: bool = True) -> None:
        found = bucket.s3.head_object(Bucket=bucket.bucket, Key=key, VersionId=version)
        one = Arrival(key=key, version=version, etag=found["ETag"].strip('"'), size=found["ContentLength"])
        name = f"order-{number}"
        mini.store.create(ingest_order(name), IngestOrder(order=name, objects=(one,), ordered_at=utc_now()))
        if carried_out:
            carry_out(mini.settings, mini.store, contracts, name)

    older = bucket.put(key, OTHER)
    order(1, older)
    past = past_orders(mini.store)
    assert past == {"order-1"}
    version = bucket.put(key, CONTENT)
    uploaded = Uploaded(file, key, version, "", len(CONTENT))
    # results of other versions, and orders without an outcome, are passed over
    steps = iter([lambda: order(2, older), lambda: order(3, version, carried_out=False), lambda: order(4, version)])
    waited: list[int] = []

    def waiting(missing: int) -> None:
        waited.append(missing)
        next(steps)()

    ((which, result),) = results(mini.store, [uploaded], past, waiting)
    assert which is uploaded
    assert (result.outcome, result.version) == ("ingested", version)
    assert waited == [1, 1, 1]
