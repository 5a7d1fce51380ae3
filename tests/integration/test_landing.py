"""Objects of the landing bucket are ingested like files: in the version that was named, and only if they are new."""

from __future__ import annotations

import errno
import gzip
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import duckdb
import pytest
from botocore.exceptions import ClientError

from busco.aws import client
from busco.errors import BuscoError
from busco.ingest import landing
from busco.ingest.files import SourceFile
from busco.ingest.ingest import Report
from busco.ingest.landing import LandedObject, landed_object
from busco.ingest.load import _copy, ingested_before
from busco.ingest.refused import Refused
from busco.ingest.row_count import RowCount
from busco.lake.engine import connect
from busco.lake.records import Delivery
from busco.projects import all_contracts
from busco.warehouse.dbt import ensure_manifests
from tests.integration.test_ingest import GOOD, HEADER, deliveries, one, rows
from tests.platforms import Platform, csv_text

CONTENT = csv_text(HEADER, GOOD).encode()
OTHER = csv_text(HEADER, GOOD[:1]).encode()


class Landing:
    """The landing bucket of a platform, which is empty when a test begins."""

    def __init__(self, platform: Platform) -> None:
        self.platform, self.bucket = platform, platform.settings.landing_bucket
        self.s3: Any = client("s3", platform.settings)
        for page in self.s3.get_paginator("list_object_versions").paginate(Bucket=self.bucket):
            for item in (*page.get("Versions", ()), *page.get("DeleteMarkers", ())):
                self.s3.delete_object(Bucket=self.bucket, Key=item["Key"], VersionId=item["VersionId"])

    def put(self, key: str, body: bytes = CONTENT) -> str:
        """Uploads an object; returns its version's id."""
        return str(self.s3.put_object(Bucket=self.bucket, Key=key, Body=body)["VersionId"])

    def take(self, prefix: str = "", table: str | None = None) -> Report:
        """Ingests the objects below a prefix in this process."""
        from busco.ingest.ingest import ingest

        settings = self.platform.settings
        contracts = all_contracts(ensure_manifests(settings))
        url = f"s3://{self.bucket}/{prefix}"
        return ingest(settings, self.platform.store, contracts, [url], table, lambda _: lambda _: None)

    def version(self, key: str, version: str) -> LandedObject:
        """Returns one version of an object, as an event names it."""
        found = self.s3.head_object(Bucket=self.bucket, Key=key, VersionId=version)
        contracts = all_contracts(ensure_manifests(self.platform.settings))
        made = landed_object(
            self.s3, self.bucket, key, version, found["ETag"].strip('"'), found["ContentLength"], contracts
        )
        assert isinstance(made, LandedObject), made
        return made

    def load(self, landed: LandedObject) -> Any:
        from busco.ingest.files import Limits
        from busco.ingest.load import load

        with connect(self.platform.settings) as connection:
            scratch = self.platform.settings.state / "spill"
            return load(connection, self.platform.store, landed, scratch, Limits(10**6, 10**9), lambda _: None)


@pytest.fixture
def bucket(mini: Platform) -> Landing:
    return Landing(mini)


def refusal(code: str, status: int, message: str = "it is not so") -> ClientError:
    """Returns the error that boto3 raises for an answer of S3."""
    answer: Any = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(answer, "GetObject")


def newest(platform: Platform) -> Delivery:
    return max(deliveries(platform), key=lambda delivery: delivery.number)


def test_an_object_becomes_a_delivery_that_names_its_version(mini: Platform, bucket: Landing) -> None:
    version = bucket.put("bronze/orders/2026/a b+c%é.csv")
    assert (one(bucket.take()).outcome, one(bucket.take()).outcome) == ("ingested", "known")
    (delivery,) = deliveries(mini)
    assert delivery.file_name == "2026/a b+c%é.csv"
    assert delivery.source == f"s3://{bucket.bucket}/bronze/orders/2026/a b+c%é.csv"
    assert delivery.source_version == version
    assert [row[0] for row in rows(mini, delivery)] == ["a", "b"]


def test_an_object_that_was_ingested_is_not_read_again(
    mini: Platform, bucket: Landing, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put("orders/a.csv")
    bucket.take()

    def read(*_: object) -> str:
        raise AssertionError("it was read again")

    monkeypatch.setattr(LandedObject, "_fetch", read)
    assert one(bucket.take("orders/")).outcome == "known"


def test_two_objects_that_are_the_same_file_are_refused(mini: Platform, bucket: Landing) -> None:
    """Otherwise, each run would make a delivery of both, and the last one listed would win."""
    bucket.put("orders/a.csv")
    bucket.put("orders/other.csv")
    bucket.take()
    bucket.put("bronze/orders/a.csv", OTHER)
    bucket.put("orders/a.csv.gz", gzip.compress(OTHER))
    report = bucket.take()
    assert [(loaded.file.name, loaded.outcome) for loaded in report.loaded] == [("other.csv", "known")]
    assert len(report.unknown) == 3
    assert all("the same file of orders is also at s3://" in reason for _, reason in report.unknown)
    assert len(deliveries(mini)) == 2


def test_a_version_that_arrives_again_is_known_even_after_a_newer_one(mini: Platform, bucket: Landing) -> None:
    versions = [bucket.put("orders/a.csv", content) for content in (CONTENT, OTHER, CONTENT)]
    for version in versions[:2]:
        assert ingested_before(mini.store, bucket.version("orders/a.csv", version)) is None
        bucket.load(bucket.version("orders/a.csv", version))
    for version in versions[:2]:
        assert ingested_before(mini.store, bucket.version("orders/a.csv", version)) is not None
    # content that returns is a new version, and a new delivery
    assert ingested_before(mini.store, bucket.version("orders/a.csv", versions[2])) is None
    assert bucket.load(bucket.version("orders/a.csv", versions[2])).outcome == "ingested"
    assert len(deliveries(mini)) == 3


def test_an_object_that_s3_does_not_let_anybody_read_stops_no_other(
    mini: Platform, bucket: Landing, monkeypatch: pytest.MonkeyPatch
) -> None:
    from busco.ingest import ingest

    bucket.put("orders/archived.csv")
    bucket.put("orders/good.csv", OTHER)

    def get_object(**arguments: Any) -> Any:
        if "archived" in arguments["Key"]:
            raise refusal("InvalidObjectState", 403)
        return original(**arguments)

    s3 = client("s3", mini.settings)
    original = s3.get_object
    monkeypatch.setattr(s3, "get_object", get_object)
    monkeypatch.setattr(ingest, "client", lambda *_: s3)
    archived, good = bucket.take().loaded
    assert (archived.outcome, good.outcome) == ("refused", "ingested")
    assert "InvalidObjectState" in archived.reason


@pytest.mark.parametrize(
    ("code", "status"),
    [("InvalidRequest", 400), ("InvalidArgument", 400), ("AllAccessDisabled", 403), ("AccountProblem", 403),
     ("AccessDenied", 403), ("InvalidObjectState", 403), ("KMS.DisabledException", 400), ("Unheard", 409)],
)  # fmt: skip
def test_an_object_that_s3_does_not_return_is_refused_for_now(
    mini: Platform, bucket: Landing, code: str, status: int
) -> None:
    landed = bucket.version("orders/a.csv", bucket.put("orders/a.csv"))
    refused = bucket.load(replace(landed, s3=SimpleNamespace(get_object=raising(code, status))))
    assert (refused.outcome, refused.transient) == ("refused", True)
    assert f"it is not so ({code}, GetObject)" in refused.reason


@pytest.mark.parametrize(
    ("code", "status"),
    [("ExpiredToken", 400), ("InvalidToken", 400), ("TokenRefreshRequired", 400), ("InvalidAccessKeyId", 403),
     ("SignatureDoesNotMatch", 403), ("RequestTimeTooSkewed", 403), ("RequestTimeout", 400), ("NoSuchBucket", 404),
     ("Throttling", 400), ("KMS.ThrottlingException", 400), ("TooManyRequests", 429), ("SlowDown", 503),
     ("InternalError", 500), ("PermanentRedirect", 301)],
)  # fmt: skip
def test_an_error_of_s3_that_is_not_about_the_object_does_not_refuse_it(
    mini: Platform, bucket: Landing, code: str, status: int
) -> None:
    landed = bucket.version("orders/a.csv", bucket.put("orders/a.csv"))
    with pytest.raises(ClientError, match=code):
        bucket.load(replace(landed, s3=SimpleNamespace(get_object=raising(code, status))))


def raising(code: str, status: int) -> Any:
    def call(**_: Any) -> Any:
        raise refusal(code, status)

    return call


@pytest.mark.parametrize("code", [errno.EIO, errno.EMFILE, errno.ENOMEM, errno.ENOSPC])
def test_an_error_of_the_machine_refuses_an_object_only_for_now(
    mini: Platform, bucket: Landing, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    landed = bucket.version("orders/a.csv", bucket.put("orders/a.csv"))
    monkeypatch.setattr(RowCount, "feed", fail)
    refused = bucket.load(landed)
    assert (refused.outcome, refused.transient) == ("refused", True)


def test_an_error_of_the_machine_while_duckdb_copies_refuses_an_object_only_for_now(
    mini: Platform, bucket: Landing
) -> None:
    def execute(_: str) -> None:
        raise duckdb.IOException("Could not read from file /proc/self/fd/9: Input/output error")

    landed = bucket.version("orders/a.csv", bucket.put("orders/a.csv"))
    opened = SourceFile(Path("/proc/self/fd/9"), landed.name, landed.contract)
    with pytest.raises(Refused) as refused:
        _copy(SimpleNamespace(execute=execute), opened, "copy")  # type: ignore[arg-type]
    assert refused.value.transient


def test_broken_content_refuses_an_object_for_good(mini: Platform, bucket: Landing) -> None:
    content = gzip.compress(CONTENT)
    for number, body in enumerate((content[:-9], content[:-8] + b"\0" * 8, content[:12] + b"\xff" * 30)):
        key = f"orders/{number}.csv.gz"
        refused = bucket.load(bucket.version(key, bucket.put(key, body)))
        assert (refused.outcome, refused.transient) == ("refused", False)
        assert "broken gzip" in refused.reason


def test_compressed_and_plain_large_and_small_objects_give_the_same_rows(
    mini: Platform, bucket: Landing, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put("orders/plain.csv")
    bucket.put("orders/packed.csv.gz", gzip.compress(CONTENT))
    bucket.take()
    monkeypatch.setattr(landing, "_IN_MEMORY", 0)
    bucket.put("orders/on-disk.csv")
    bucket.put("orders/packed-on-disk.csv.gz", gzip.compress(CONTENT))
    assert bucket.take().good
    found = [[row[:5] for row in rows(mini, delivery)] for delivery in deliveries(mini)]
    assert len(found) == 4
    assert all(content == found[0] for content in found)


def test_a_small_object_is_not_copied_to_the_disk(
    mini: Platform, bucket: Landing, monkeypatch: pytest.MonkeyPatch
) -> None:
    def temporary_file(**_: Any) -> Any:
        raise AssertionError("it is copied to the disk")

    monkeypatch.setattr(landing, "TemporaryFile", temporary_file)
    bucket.put("orders/a.csv")
    assert one(bucket.take()).outcome == "ingested"


def test_each_version_is_read_as_it_was_even_after_an_overwrite(mini: Platform, bucket: Landing) -> None:
    first = bucket.put("orders/a.csv", CONTENT)
    second = bucket.put("orders/a.csv", OTHER)
    assert bucket.load(bucket.version("orders/a.csv", first)).rows == 2
    assert bucket.load(bucket.version("orders/a.csv", second)).rows == 1
    assert newest(mini).source_version == second
    assert len(deliveries(mini)) == 2


def test_an_object_that_is_deleted_or_replaced_before_it_is_read_is_refused(mini: Platform, bucket: Landing) -> None:
    gone = bucket.version("orders/a.csv", bucket.put("orders/a.csv"))
    bucket.s3.delete_object(Bucket=bucket.bucket, Key=gone.key, VersionId=gone.version)
    refused = bucket.load(gone)
    assert (refused.outcome, refused.reason) == ("refused", "it was deleted before it could be read")
    marker = bucket.put("orders/b.csv")
    listed = bucket.version("orders/b.csv", marker)
    unversioned = LandedObject(
        listed.s3, listed.bucket, listed.key, "", listed.etag, listed.size, listed.name, listed.contract
    )
    bucket.put("orders/b.csv", OTHER)
    assert "it was replaced before it could be read" in bucket.load(unversioned).reason
    bucket.s3.delete_object(Bucket=bucket.bucket, Key="orders/b.csv")
    assert bucket.load(unversioned).reason == "it was deleted before it could be read"
    assert deliveries(mini) == []


def test_a_bad_object_stops_no_other_and_is_named_by_its_url(mini: Platform, bucket: Landing) -> None:
    bucket.put("orders/good.csv")
    bucket.put("orders/empty.csv", b"")
    bucket.put("orders/broken.csv.gz", gzip.compress(CONTENT)[:-9])
    bucket.put("unknown/a.csv")
    bucket.put("orders/", b"")
    bucket.put("_reports/bronze/orders/a.json", b"{}")
    printed = mini.busco("ingest", f"s3://{bucket.bucket}/", status=1)
    assert f"refused: s3://{bucket.bucket}/orders/empty.csv: the file is empty" in printed
    assert f"refused: s3://{bucket.bucket}/orders/broken.csv.gz: broken gzip" in printed
    assert f"refused: s3://{bucket.bucket}/unknown/a.csv: its folder belongs to no table" in printed
    assert "_reports" not in printed
    assert [delivery.file_name for delivery in deliveries(mini)] == ["good.csv"]


def test_a_prefix_is_a_folder_or_a_whole_key(mini: Platform, bucket: Landing) -> None:
    bucket.put("orders/a.csv")
    bucket.put("orders/a.csv.old.csv", OTHER)
    bucket.put("orders2/a.csv")
    assert one(bucket.take("orders/a.csv")).file.name == "a.csv"
    report = bucket.take("orders")
    assert {loaded.file.name for loaded in report.loaded} == {"a.csv", "a.csv.old.csv"}
    assert report.unknown == []


def test_what_can_not_be_meant_is_refused_with_what_to_do(mini: Platform, bucket: Landing) -> None:
    with pytest.raises(BuscoError, match="there is nothing at s3://"):
        bucket.take("nothing/")
    bucket.put("orders/a.csv")
    with pytest.raises(BuscoError, match="an object's key determines its table"):
        bucket.take("orders/", table="orders")
    assert "only the landing bucket can be ingested from" in mini.busco("ingest", "s3://another/a.csv", status=1)
