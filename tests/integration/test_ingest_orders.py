"""Orders of the events service: each version of an object becomes a delivery once, and the newest version counts."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from botocore.exceptions import ClientError, ReadTimeoutError
from click.testing import CliRunner

from busco.cli.data import ingest_command
from busco.errors import BuscoError
from busco.ingest import ingest, orders
from busco.ingest.landing import LandedObject
from busco.ingest.orders import carry_out, report_key
from busco.lake.layout import ingest_order
from busco.lake.records import Arrival, IngestedObject, IngestOrder, IngestOutcome, utc_now
from busco.projects import all_contracts
from busco.warehouse.dbt import ensure_manifests
from tests.integration.test_ingest import GOOD, HEADER, deliveries, rows
from tests.integration.test_landing import CONTENT, OTHER, Landing, bucket, newest, refusal
from tests.platforms import Platform, csv_text

__all__ = ["bucket"]  # a fixture
THIRD = csv_text(HEADER, [*GOOD, ("c", *GOOD[0][1:])]).encode()
BAD = csv_text(HEADER, [GOOD[0], ("b", *(["x"] * (len(GOOD[0]) - 1)))]).encode()


class Ordering:
    """Writes orders and carries them out in this process."""

    def __init__(self, mini: Platform, bucket: Landing) -> None:
        self.platform, self.bucket = mini, bucket
        self.contracts = all_contracts(ensure_manifests(mini.settings))
        self.numbers = itertools.count()

    def arrival(self, key: str, body: bytes = CONTENT) -> Arrival:
        """Uploads an object, and returns what its event says."""
        made = self.bucket.s3.put_object(Bucket=self.bucket.bucket, Key=key, Body=body)
        return Arrival(key=key, version=made.get("VersionId", ""), etag=made["ETag"].strip('"'), size=len(body))

    def arrival_in_parts(self, key: str, body: bytes = CONTENT) -> Arrival:
        """Uploads an object in parts, which gives it another ETag than `arrival` does."""
        where = {"Bucket": self.bucket.bucket, "Key": key}
        upload = self.bucket.s3.create_multipart_upload(**where)["UploadId"]
        part = self.bucket.s3.upload_part(**where, UploadId=upload, PartNumber=1, Body=body)
        parts = {"Parts": [{"ETag": part["ETag"], "PartNumber": 1}]}
        made = self.bucket.s3.complete_multipart_upload(**where, UploadId=upload, MultipartUpload=parts)
        return Arrival(key=key, version=made.get("VersionId", ""), etag=made["ETag"].strip('"'), size=len(body))

    def copy(self, key: str, to: str = "") -> Arrival:
        """Copies an object, by default to its own key, which replaces its metadata."""
        where, new = self.bucket.bucket, {"Metadata": {"by": "copy"}, "MetadataDirective": "REPLACE"}
        made = self.bucket.s3.copy_object(Bucket=where, Key=to or key, CopySource={"Bucket": where, "Key": key}, **new)
        size = self.bucket.s3.head_object(Bucket=where, Key=to or key)["ContentLength"]
        etag = made["CopyObjectResult"]["ETag"].strip('"')
        return Arrival(key=to or key, version=made.get("VersionId", ""), etag=etag, size=size)

    def delete(self, key: str) -> None:
        self.bucket.s3.delete_object(Bucket=self.bucket.bucket, Key=key)

    def keep_versions(self, kept: bool) -> None:
        """Enables or suspends the landing bucket's versioning."""
        status = "Enabled" if kept else "Suspended"
        self.bucket.s3.put_bucket_versioning(Bucket=self.bucket.bucket, VersioningConfiguration={"Status": status})

    def order(self, objects: Sequence[Arrival] = (), everything: bool = False, after: str = "") -> str:
        order = IngestOrder(
            order=f"order-{next(self.numbers)}-{id(self)}",
            objects=tuple(objects),
            everything=everything,
            after=after,
            ordered_at=utc_now(),
        )
        self.platform.store.create(ingest_order(order.order), order)
        return order.order

    def take(self, *objects: Arrival) -> list[IngestedObject]:
        return self.carry_out(self.order(objects))

    def everything(self) -> list[IngestedObject]:
        """Lists what has no delivery, ingests it, and returns what became of it."""
        listed = self.carry_out(self.order(everything=True))
        assert {one.outcome for one in listed} <= {"listed"}
        arrivals = [Arrival(key=one.key, version=one.version, etag=one.etag, size=one.size) for one in listed]
        return self.take(*arrivals) if arrivals else []

    def listed(self) -> list[tuple[str, str]]:
        """Returns the keys and version ids of what needs to be ingested."""
        return [(one.key, one.version) for one in self.carry_out(self.order(everything=True))]

    def carry_out(self, order: str) -> list[IngestedObject]:
        return list(self.outcome(order).objects)

    def outcome(self, order: str) -> IngestOutcome:
        return carry_out(self.platform.settings, self.platform.store, self.contracts, order)

    def report(self, key: str) -> Any:
        try:
            answer = self.bucket.s3.get_object(Bucket=self.bucket.bucket, Key=report_key(key))
        except ClientError:
            return None
        return json.loads(answer["Body"].read())


@pytest.fixture
def ordering(mini: Platform, bucket: Landing) -> Ordering:
    return Ordering(mini, bucket)


@pytest.fixture(params=["", "null"])
def unversioned(
    ordering: Ordering, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Ordering]:
    """A landing bucket without versioning; S3 returns the id `null` for its objects, or none."""
    fetch = LandedObject._fetch
    monkeypatch.setattr(LandedObject, "_fetch", lambda *arguments: fetch(*arguments) or request.param)
    ordering.keep_versions(False)
    yield ordering
    ordering.keep_versions(True)


def failing(error: Exception) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


def outcomes(found: Sequence[IngestedObject]) -> list[tuple[str, str]]:
    return [(one.key, one.outcome) for one in found]


def test_an_order_ingests_its_objects_once(mini: Platform, ordering: Ordering) -> None:
    arrived = ordering.arrival("bronze/orders/a b+c%é.csv")
    order = ordering.order([arrived])
    (found,) = ordering.carry_out(order)
    assert (found.outcome, found.table, found.rows, found.etag, found.size) == (
        "ingested", "bronze.orders", 2, arrived.etag, len(CONTENT),
    )  # fmt: skip
    # carried out again, and ordered again
    assert outcomes(ordering.carry_out(order)) == [(arrived.key, "ingested")]
    assert outcomes(ordering.take(arrived)) == [(arrived.key, "known")]
    assert len(deliveries(mini)) == 1


def rows_by_id(platform: Platform) -> dict[str, str]:
    """Returns the amount of each order, each from the newest delivery with the order."""
    found = {}
    for one in sorted(deliveries(platform), key=lambda one: one.number):
        found |= {row[0]: str(row[2]) for row in rows(platform, one)}
    return found


def content(**amounts: str) -> bytes:
    return csv_text(HEADER, [(name, "x", amount, "2018-01-01", 1) for name, amount in amounts.items()]).encode()


# what three versions of an object contain: other rows in each; or the third one is the first one again
STORIES = {
    "rows that only one version has": (content(a="1.00", b="1.00"), content(a="2.00"), content(b="3.00", c="3.00")),
    "content that returns": (content(a="1.00"), content(a="2.00"), content(a="1.00")),
}


@pytest.mark.slow
@pytest.mark.parametrize("story", STORIES)
@pytest.mark.parametrize("sequence", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("together", [0, 2, 3])
def test_whatever_the_order_of_events_the_rows_are_those_of_the_versions_in_order(
    mini: Platform, ordering: Ordering, story: str, sequence: tuple[int, ...], together: int
) -> None:
    bodies = STORIES[story]
    versions = [ordering.arrival("orders/a.csv", body) for body in bodies]
    events = [versions[number] for number in sequence]
    if together:
        ordering.take(*events[:together])
    for one in events[together:]:
        ordering.take(one)
    expected = {"a": "2.00", "b": "3.00", "c": "3.00"} if len(set(bodies)) == 3 else {"a": "1.00"}
    assert rows_by_id(mini) == expected
    before = len(deliveries(mini))
    assert {one.outcome for one in ordering.take(*events)} == {"known"}
    # a version whose content was the newest delivery's when it arrived has no delivery of its own (D2)
    assert {one.outcome for one in ordering.everything()} <= {"known"}
    assert len(deliveries(mini)) == before


def test_versions_that_arrive_together_are_delivered_once_and_in_their_own_order(
    mini: Platform, ordering: Ordering
) -> None:
    versions = [ordering.arrival("orders/a.csv", body) for body in (CONTENT, OTHER, THIRD)]
    ordering.take(*reversed(versions))
    made = sorted(deliveries(mini), key=lambda one: one.number)
    assert [one.source_version for one in made] == [one.version for one in versions]


def test_objects_with_one_base_name_in_different_folders_are_different_files(
    mini: Platform, ordering: Ordering
) -> None:
    keys = "orders/2025/a.csv", "orders/2026/a.csv", "orders/a.csv", "orders/../a.csv"
    bodies = [content(**{name: "1.00"}) for name in "abcd"]
    found = ordering.take(*(ordering.arrival(key, body) for key, body in zip(keys, bodies, strict=True)))
    assert outcomes(found) == [(key, "ingested") for key in keys]
    assert {one.file_name for one in deliveries(mini)} == {"2025/a.csv", "2026/a.csv", "a.csv", "../a.csv"}
    assert rows_by_id(mini) == dict.fromkeys("abcd", "1.00")


def test_an_object_that_was_uploaded_in_parts_or_copied_is_ingested(mini: Platform, ordering: Ordering) -> None:
    assert outcomes(ordering.take(ordering.arrival_in_parts("orders/parts.csv"))) == [("orders/parts.csv", "ingested")]
    copied = ordering.copy("orders/parts.csv", "orders/copy.csv")
    assert outcomes(ordering.take(copied)) == [("orders/copy.csv", "ingested")]
    assert all(len(rows(mini, one)) == 2 for one in deliveries(mini))


@pytest.mark.parametrize("again", ["in parts", "with other metadata"])
def test_unchanged_content_that_was_written_again_is_no_delivery(
    mini: Platform, ordering: Ordering, again: str
) -> None:
    ordering.take(ordering.arrival("orders/a.csv"))
    written = ordering.arrival_in_parts("orders/a.csv") if again == "in parts" else ordering.copy("orders/a.csv")
    assert outcomes(ordering.take(written)) == [("orders/a.csv", "known")]
    assert len(deliveries(mini)) == 1


def test_two_objects_are_loaded_at_once(ordering: Ordering, monkeypatch: pytest.MonkeyPatch) -> None:
    both, load = threading.Barrier(2), ingest.load

    def together(*arguments: Any) -> Any:
        both.wait(60)
        return load(*arguments)

    monkeypatch.setattr(ingest, "load", together)
    found = ordering.take(ordering.arrival("orders/a.csv"), ordering.arrival("orders/b.csv", OTHER))
    assert outcomes(found) == [("orders/a.csv", "ingested"), ("orders/b.csv", "ingested")]


def test_an_order_is_carried_out_without_parsing_a_dbt_project(
    mini: Platform, ordering: Ordering, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = ordering.order([ordering.arrival("orders/a.csv")])
    monkeypatch.setattr("busco.warehouse.dbt.opened", failing(AssertionError("a project is parsed")))
    done = CliRunner().invoke(ingest_command, ["--order", order])
    assert (done.exit_code, done.exception) == (0, None)
    assert len(deliveries(mini)) == 1


@pytest.mark.parametrize("by", ["the event again", "a comparison"])
def test_the_newest_version_is_delivered_again_even_if_its_first_attempt_was_interrupted(
    mini: Platform, ordering: Ordering, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    older, newer = ordering.arrival("orders/a.csv", CONTENT), ordering.arrival("orders/a.csv", OTHER)
    ordering.take(newer)
    with monkeypatch.context() as patch:
        patch.setattr("busco.ingest.orders.versions_to_apply", lambda *_: (_ for _ in ()).throw(OSError("killed")))
        with pytest.raises(OSError, match="killed"):
            ordering.take(older)
    assert newest(mini).source_version == older.version
    found = ordering.everything() if by == "a comparison" else ordering.take(older)
    assert newest(mini).source_version == newer.version
    # the table has changed, so it must be announced
    assert "ingested" in [one.outcome for one in found]


def test_no_comparison_delivers_unchanged_content_again(mini: Platform, ordering: Ordering) -> None:
    for body in (CONTENT, CONTENT, OTHER):
        ordering.take(ordering.arrival("orders/a.csv", body))
    assert len(deliveries(mini)) == 2
    assert ordering.everything() == []


def test_an_object_that_s3_refuses_to_return_may_be_accepted_later(
    mini: Platform, ordering: Ordering, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrived = ordering.arrival("orders/a.csv")
    denied = refusal("AccessDenied", 403, "kms:Decrypt")
    with monkeypatch.context() as patch:
        patch.setattr(LandedObject, "_fetch", lambda self, _: (_ for _ in ()).throw(self._refusal(denied)))
        (found,) = ordering.take(arrived)
    assert (found.outcome, found.transient) == ("refused", True)
    assert "kms:Decrypt" in found.reason
    assert outcomes(ordering.everything()) == [("orders/a.csv", "ingested")]
    assert len(deliveries(mini)) == 1


def test_an_object_without_version_is_delivered_once_per_content(mini: Platform, unversioned: Ordering) -> None:
    for body in (CONTENT, OTHER, CONTENT):
        before = len(deliveries(mini))
        arrived = unversioned.arrival("orders/a.csv", body)
        assert unversioned.listed() == [("orders/a.csv", "null")]
        assert outcomes(unversioned.take(arrived)) == [("orders/a.csv", "ingested")]
        assert unversioned.listed() == []
        assert outcomes(unversioned.take(arrived)) == [("orders/a.csv", "known")]
        assert len(deliveries(mini)) == before + 1
    # events that are lost
    for body in (OTHER, CONTENT):
        unversioned.arrival("orders/a.csv", body)
        assert outcomes(unversioned.everything()) == [("orders/a.csv", "ingested")]
        assert unversioned.listed() == []
    assert unversioned.report("orders/a.csv") is None


@pytest.mark.parametrize("by", ["events", "late events", "a comparison"])
def test_an_object_from_before_the_bucket_had_versions_is_read_as_it_was(
    mini: Platform, unversioned: Ordering, by: str
) -> None:
    older = unversioned.arrival("orders/a.csv", content(a="1.00", b="1.00"))
    unversioned.keep_versions(True)
    newer = unversioned.arrival("orders/a.csv", content(a="2.00"))
    if by == "a comparison":
        assert unversioned.listed() == [("orders/a.csv", "null"), ("orders/a.csv", newer.version)]
        unversioned.everything()
    for one in {"events": (older, newer), "late events": (newer, older)}.get(by, ()):
        unversioned.take(one)
    assert rows_by_id(mini) == {"a": "2.00", "b": "1.00"}
    before = len(deliveries(mini))
    assert unversioned.listed() == []
    # the events again
    assert {one.outcome for one in [*unversioned.take(older), *unversioned.take(newer)]} == {"known"}
    assert len(deliveries(mini)) == before
    assert unversioned.report("orders/a.csv") is None


@pytest.mark.parametrize("report", [b"", b"[]", b'{"versions": [1, null, "x"]}', b'{"versions": 3}'])
def test_a_report_that_somebody_else_has_written_does_not_make_an_order_fail(ordering: Ordering, report: bytes) -> None:
    ordering.bucket.s3.put_object(Bucket=ordering.bucket.bucket, Key=report_key("orders/a.csv"), Body=report)
    assert outcomes(ordering.take(ordering.arrival("orders/a.csv", b""))) == [("orders/a.csv", "refused")]
    assert ordering.everything() == []


def test_orders_are_carried_out_in_prod_only(ordering: Ordering) -> None:
    settings = ordering.platform.settings.model_copy(update={"environment": "dev_me"})
    with pytest.raises(BuscoError, match="only in the prod environment"):
        carry_out(settings, ordering.platform.store, ordering.contracts, ordering.order())


def test_bad_objects_do_not_stop_the_others_and_each_is_reported_to_its_producer(
    mini: Platform, ordering: Ordering
) -> None:
    good = ordering.arrival("orders/good.csv")
    empty = ordering.arrival("orders/empty.csv", b"")
    partly = ordering.arrival("orders/partly.csv", BAD)
    unknown = ordering.arrival("unknown/a.csv")
    folder = ordering.arrival("orders/", b"")
    found = ordering.take(folder, unknown, empty, partly, good)
    assert outcomes(found) == [
        ("orders/", "ignored"),
        ("unknown/a.csv", "refused"),
        ("orders/empty.csv", "refused"),
        ("orders/partly.csv", "ingested"),
        ("orders/good.csv", "ingested"),
    ]
    assert (ordering.report("orders/good.csv"), ordering.report("orders/")) == (None, None)
    assert "its folder belongs to no table" in ordering.report("unknown/a.csv")["versions"][0]["reason"]
    (entry,) = ordering.report("orders/empty.csv")["versions"]
    assert (entry["outcome"], entry["version"], entry["reason"]) == (
        "refused", empty.version, "the file is empty (zero bytes)",
    )  # fmt: skip
    (entry,) = ordering.report("orders/partly.csv")["versions"]
    assert (entry["rows"], entry["quarantined"], len(entry["examples"])) == (2, 1, 3)
    assert entry["examples"][0] == "row 2, amount: ••• — not a DECIMAL(12,2)"
    assert {one.file_name for one in deliveries(mini)} == {"good.csv", "partly.csv"}


def test_a_corrected_object_is_reported_as_good(ordering: Ordering) -> None:
    ordering.take(ordering.arrival("orders/a.csv", b""))
    ordering.take(ordering.arrival("orders/a.csv"))
    assert [one["outcome"] for one in ordering.report("orders/a.csv")["versions"]] == ["ingested", "refused"]


def test_everything_finds_what_no_event_named_and_nothing_twice(mini: Platform, ordering: Ordering) -> None:
    first, second = ordering.arrival("orders/a.csv", CONTENT), ordering.arrival("orders/a.csv", OTHER)
    ordering.arrival("orders/withdrawn.csv")
    ordering.bucket.s3.delete_object(Bucket=ordering.bucket.bucket, Key="orders/withdrawn.csv")
    ordering.arrival("orders/", b"")
    assert outcomes(ordering.everything()) == [("orders/a.csv", "ingested"), ("orders/a.csv", "ingested")]
    assert [one.source_version for one in sorted(deliveries(mini), key=lambda one: one.number)] == [
        first.version, second.version,
    ]  # fmt: skip
    assert ordering.everything() == []
    third = ordering.arrival("orders/b.csv")
    assert outcomes(ordering.everything()) == [("orders/b.csv", "ingested")]
    assert outcomes(ordering.take(third)) == [("orders/b.csv", "known")]


def test_a_version_whose_event_was_lost_is_found_behind_a_newer_one(mini: Platform, ordering: Ordering) -> None:
    older = ordering.arrival("orders/a.csv", content(a="1.00", b="1.00"))
    ordering.take(ordering.arrival("orders/a.csv", content(a="2.00")))
    assert ordering.listed() == [("orders/a.csv", older.version)]
    ordering.everything()
    assert rows_by_id(mini) == {"a": "2.00", "b": "1.00"}
    assert ordering.listed() == []


def test_what_was_refused_is_not_read_again_until_the_contracts_change(
    ordering: Ordering, monkeypatch: pytest.MonkeyPatch
) -> None:
    ordering.take(ordering.arrival("orders/empty.csv", b""), ordering.arrival("unknown/a.csv"))
    assert ordering.everything() == []
    made = orders._Reports(ordering.bucket.s3, ordering.bucket.bucket, "other")
    monkeypatch.setattr(orders._Reports, "of", lambda *_: made)
    assert sorted(outcomes(ordering.everything())) == [("orders/empty.csv", "refused"), ("unknown/a.csv", "refused")]


def test_a_version_that_is_gone_is_refused_and_reported(mini: Platform, ordering: Ordering) -> None:
    gone = ordering.arrival("orders/a.csv")
    ordering.bucket.s3.delete_object(Bucket=ordering.bucket.bucket, Key=gone.key, VersionId=gone.version)
    (found,) = ordering.take(gone)
    assert (found.outcome, found.reason) == ("refused", "it was deleted before it could be read")
    assert deliveries(mini) == []


def test_a_deleted_object_is_read_as_long_as_its_version_exists(mini: Platform, ordering: Ordering) -> None:
    arrived = ordering.arrival("orders/a.csv")
    ordering.bucket.s3.delete_object(Bucket=ordering.bucket.bucket, Key=arrived.key)
    assert outcomes(ordering.take(arrived)) == [("orders/a.csv", "ingested")]
    (delivery,) = deliveries(mini)
    assert len(rows(mini, delivery)) == 2


@pytest.mark.parametrize("together", [True, False])
def test_two_objects_with_one_file_name_are_not_both_ingested(
    mini: Platform, ordering: Ordering, together: bool
) -> None:
    one, other = ordering.arrival("orders/a.csv"), ordering.arrival("bronze/orders/a.csv", OTHER)
    found = ordering.take(one, other) if together else [*ordering.take(one), *ordering.take(other)]
    assert outcomes(found) == [("orders/a.csv", "ingested"), ("bronze/orders/a.csv", "refused")]
    assert "delete one of them" in found[1].reason
    assert len(deliveries(mini)) == 1
    # a producer may move a file
    ordering.bucket.s3.delete_object(Bucket=ordering.bucket.bucket, Key="orders/a.csv")
    moved = ordering.arrival("bronze/orders/a.csv", THIRD)
    assert outcomes(ordering.take(moved)) == [("bronze/orders/a.csv", "ingested")]


def test_an_event_that_arrives_again_after_a_file_was_moved_is_known(mini: Platform, ordering: Ordering) -> None:
    first = ordering.arrival("orders/a.csv")
    ordering.take(first)
    ordering.delete("orders/a.csv")
    ordering.take(ordering.arrival("bronze/orders/a.csv", OTHER))
    assert [(one.outcome, one.transient) for one in ordering.take(first)] == [("known", False)]
    assert ordering.report("orders/a.csv") is None
    assert len(deliveries(mini)) == 2


def test_another_object_with_the_same_file_name_counts_even_if_nobody_can_read_it(
    ordering: Ordering, monkeypatch: pytest.MonkeyPatch
) -> None:
    ordering.take(ordering.arrival("orders/a.csv"))
    s3 = orders.client("s3", ordering.platform.settings)
    monkeypatch.setattr(s3, "head_object", failing(refusal("400", 400)))  # SSE-C
    monkeypatch.setattr(orders, "client", lambda *_: s3)
    found = ordering.take(ordering.arrival("bronze/orders/a.csv", OTHER), ordering.arrival("orders/b.csv"))
    assert outcomes(found) == [("bronze/orders/a.csv", "refused"), ("orders/b.csv", "ingested")]


def test_each_report_is_written_before_the_next_object_is_loaded(
    ordering: Ordering, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = ordering.arrival("orders/a.csv", BAD), ordering.arrival("orders/a.csv", OTHER)
    load = ingest.load

    def killed(*arguments: Any) -> Any:
        if arguments[2].version == second.version:
            raise OSError("killed")
        return load(*arguments)

    monkeypatch.setattr(ingest, "load", killed)
    with pytest.raises(OSError, match="killed"):
        ordering.take(first, second)
    assert [one["version"] for one in ordering.report("orders/a.csv")["versions"]] == [first.version]


def test_quarantined_rows_of_a_known_object_are_reported_if_they_were_not_before(ordering: Ordering) -> None:
    partly, good = ordering.arrival("orders/partly.csv", BAD), ordering.arrival("orders/good.csv")
    ordering.take(partly, good)
    complete = ordering.report("orders/partly.csv")
    assert outcomes(ordering.take(partly, good)) == [("orders/partly.csv", "known"), ("orders/good.csv", "known")]
    assert ordering.report("orders/partly.csv") == complete
    ordering.delete(report_key("orders/partly.csv"))
    assert outcomes(ordering.take(partly, good)) == [("orders/partly.csv", "known"), ("orders/good.csv", "known")]
    (entry,) = ordering.report("orders/partly.csv")["versions"]
    assert (entry["outcome"], entry["version"], entry["rows"], entry["quarantined"], entry["examples"]) == (
        "ingested", partly.version, 2, 1, [],
    )  # fmt: skip
    assert ordering.report("orders/good.csv") is None


def test_a_report_that_can_not_be_written_does_not_make_an_order_fail(
    mini: Platform, ordering: Ordering, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orders._Reports, "entries", failing(ReadTimeoutError(endpoint_url="https://s3")))
    found = ordering.take(ordering.arrival("orders/partly.csv", BAD), ordering.arrival("orders/empty.csv", b""))
    assert outcomes(found) == [("orders/partly.csv", "ingested"), ("orders/empty.csv", "refused")]


def test_reports_have_no_values_of_tables_with_personal_columns(
    ordering: Ordering, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    monkeypatch.setattr(
        ordering, "contracts", tuple(replace(one, pii=frozenset({one.columns[0].name})) for one in ordering.contracts)
    )
    ordering.take(ordering.arrival("orders/partly.csv", BAD.replace(b"x", b"canary")))
    text = json.dumps(ordering.report("orders/partly.csv"))
    assert '"quarantined": 1' in text
    assert "canary" not in text


@pytest.mark.parametrize(
    ("key", "folder"),
    [
        ("orders/" + "é" * 508, "orders/"),
        ("bronze/orders/" + "x" * 1005, "bronze/orders/"),
        ("orders/" + "x" * 1000 + "/c.csv", "orders/"),
        ("x" * 1010 + "/c.csv", ""),
    ],
)
def test_the_report_of_a_long_key_has_a_key_that_s3_accepts(key: str, folder: str) -> None:
    assert len(report_key(key).encode()) <= 1024
    assert report_key(key).rpartition("/")[0] == f"_reports/{folder}".rstrip("/")
    assert report_key(key) != report_key(key[:-1])


def test_a_long_key_does_not_hide_other_objects_from_a_comparison(ordering: Ordering) -> None:
    long = "orders/" + "x" * 1000 + "/c.csv"
    ordering.arrival(long)
    ordering.arrival("orders/good.csv")
    assert sorted(outcomes(ordering.everything())) == [("orders/good.csv", "ingested"), (long, "refused")]
    assert "too long" in ordering.report(long)["versions"][0]["reason"]
    assert ordering.listed() == []


@pytest.mark.parametrize("what", ["report", "delivery record"])
def test_what_can_not_be_read_about_one_object_does_not_stop_a_comparison(
    mini: Platform, ordering: Ordering, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    ordering.take(ordering.arrival("orders/a.csv", OTHER))
    first, second = ordering.arrival("orders/a.csv"), ordering.arrival("orders/b.csv")
    s3 = orders.client("s3", ordering.platform.settings)
    read = s3.get_object

    def get_object(**arguments: Any) -> Any:
        if arguments["Key"] == report_key("orders/a.csv"):
            raise refusal("AccessDenied", 403)
        return read(**arguments)

    if what == "report":
        monkeypatch.setattr(s3, "get_object", get_object)
        monkeypatch.setattr(orders, "client", lambda *_: s3)
    else:
        monkeypatch.setattr(orders, "deliveries_of", failing(ValueError("not a record")))
    assert (first.key, first.version) in ordering.listed()
    assert (second.key, second.version) in ordering.listed()


def test_a_comparison_fails_if_s3_does(ordering: Ordering, monkeypatch: pytest.MonkeyPatch) -> None:
    ordering.arrival("orders/a.csv")
    monkeypatch.setattr(orders._Reports, "entries", failing(refusal("SlowDown", 503)))
    with pytest.raises(ClientError, match="SlowDown"):
        ordering.listed()


def test_an_unknown_order_is_refused(ordering: Ordering) -> None:
    with pytest.raises(BuscoError, match="there is no order nothing to ingest"):
        ordering.carry_out("nothing")


def test_the_command_prints_what_became_of_each_object(mini: Platform, ordering: Ordering) -> None:
    order = ordering.order([ordering.arrival("orders/a.csv"), ordering.arrival("orders/empty.csv", b"")])
    printed = mini.busco("ingest", "--order", order)
    assert "ingested: orders/a.csv (2 rows)" in printed
    assert "refused: orders/empty.csv: the file is empty (zero bytes)" in printed


def test_a_large_bucket_is_listed_in_parts_that_never_divide_an_object(
    ordering: Ordering, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orders, "_LISTED", 4)
    for number in range(5):
        for version in range(2):
            ordering.arrival(f"orders/{number}.csv", CONTENT * (version + 1))
    ordering.arrival("orders/3 gone.csv")
    ordering.delete("orders/3 gone.csv")
    parts, after = [], ""
    for _ in range(10):
        found = ordering.outcome(ordering.order(everything=True, after=after))
        parts.append([one.key for one in found.objects])
        if not found.more:
            break
        after = found.objects[-1].key
    assert parts == [[f"orders/{key}.csv" for key in keys for _ in range(2)] for keys in ("01", "23", "4")]


def test_an_order_without_objects_fails_if_the_landing_bucket_can_not_be_read(ordering: Ordering) -> None:
    assert ordering.take() == []
    other = ordering.platform.settings.model_copy(update={"landing_bucket": "no-such-bucket"})
    with pytest.raises(ClientError, match="NoSuchBucket"):
        carry_out(other, ordering.platform.store, ordering.contracts, ordering.order())
