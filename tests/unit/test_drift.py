"""One object or table that can't be compared or repaired keeps nothing else from being compared and repaired."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from busco.catalog import repair
from busco.catalog.glue_drift import Catalog
from busco.catalog.repair import Report
from busco.errors import BuscoError
from busco.lake import versions
from busco.lake.contents import BRONZE, complete, read_pages, read_record
from busco.lake.drift import UNFINISHED, Finding
from busco.lake.formats import encode
from busco.lake.manifests import manifests_of
from busco.lake.metadata_json import NONE, location_of
from busco.lake.objects import ObjectStore
from busco.lake.records import Delivery, Published, Release
from busco.lake.scrub import live_personal, scrub
from busco.settings import LAYERS
from tests.unit import test_inventory
from tests.unit.lake import ENVIRONMENT
from tests.unit.memory_glue import MemoryGlue, refusal
from tests.unit.memory_s3 import KeepingS3, Killed, MemoryS3
from tests.unit.test_deliveries import OLD, deliver, published
from tests.unit.test_inventory import made, publish
from tests.unit.test_scrub import readable

A, B = "gold.a", "gold.b"
VALUE = "123454321"


class Lake:
    """Two tables in two releases, of which the second one is live and shown in Glue.

    The bucket keeps older versions, and its policy lets nobody replace records.
    """

    def __init__(self, form: int = 2) -> None:
        self.s3, self.glue = KeepingS3(), MemoryGlue()
        self.store = ObjectStore(self.s3, "lake")
        self.catalog = Catalog(self.glue, lambda layer: f"busco_{layer}", LAYERS, 1)
        self.old, self.live = self.release(1, form), self.release(2, form)
        self.catalog.sync(self.store, ENVIRONMENT)

    def release(self, serial: int, form: int) -> dict[str, Published]:
        tables = {table: made(self.store, table, f"{table[-1]}{serial}") for table in (A, B)}
        publish(self.store, tables, serial)
        if form == 1:
            tables = {table: self.in_format_1(one) for table, one in tables.items()}
            key = ENVIRONMENT.release(f"r{serial}")
            release = self.store.read(key, Release)
            assert release is not None
            body = encode(self.store, release.model_copy(update={"tables": tables}), 1)
            self.store.purge(key, whole=True)
            self.store.create(key, body)
        return tables

    def in_format_1(self, one: Published) -> Published:
        """Replaces a version by one that older code could have made, without a record or location of its own."""
        record = read_record(self.store, one)
        metadata = f"{ENVIRONMENT.shared_location(one.table)}/metadata/00001-{one.version}.metadata.json"
        for key in [one.record, *self.store.keys(location_of(one.metadata))]:
            self.store.purge(key, whole=True)
        whole = record.model_copy(update={"metadata": metadata})
        files = [versions.ManifestFiles(one.version, lambda: record.files)]
        versions.write_metadata(self.store, ENVIRONMENT, whole, files, NONE, {"busco.version": one.version})
        return Published.model_validate(json.loads(whole.model_dump_json()))

    def write_bronze_metadata(self) -> None:
        """Writes the metadata of the bronze table (`delivered`), as each run does if it does not exist."""
        one = self.live["bronze.orders"]
        record = read_record(self.store, one)
        pages = read_pages(self.store, one.table, record.pages)
        whole = complete(one, record, pages)
        manifests = manifests_of(self.store, whole, pages)
        versions.write_metadata(self.store, BRONZE, whole, manifests, NONE, {"busco.version": one.version})

    def delete(self, key: str) -> None:
        self.s3.delete_object(Bucket="lake", Key=key)

    def overwrite(self, key: str, body: bytes) -> None:
        self.s3.has_policy = False
        self.store.put(key, body)
        self.s3.has_policy = True

    def commit(self, table: str, location: str = "s3://elsewhere/x.metadata.json") -> None:
        """Changes an entry as another engine does."""
        entry = self.glue.tables["busco_gold", table.partition(".")[2]]
        entry["Parameters"] = {"busco.managed": "true", "metadata_location": location}

    def shows(self, table: str) -> bool:
        shown = self.glue.tables["busco_gold", table.partition(".")[2]]["Parameters"]["metadata_location"]
        return str(shown) == self.store.url(self.live[table].metadata)

    def check(self) -> Report:
        before = dict(self.s3.objects)
        report = repair.check(self.store, ENVIRONMENT, self.catalog)
        assert self.s3.objects == before
        return report

    def repair(self, can_make_metadata: bool = True) -> Report:
        return repair.repair(self.store, ENVIRONMENT, self.catalog, "me", can_make_metadata)


def listed(report: Report) -> list[tuple[str, str, bool]]:
    return sorted((one.kind, one.table, one.live) for one in report.findings)


@pytest.fixture
def lake() -> Lake:
    return Lake()


@pytest.fixture
def older() -> Lake:
    return Lake(form=1)


def scrubbed(lake: Lake, kill_at: int | None = None) -> bool:
    """Scrubs with a relaxed bucket policy, and returns whether the scrub was killed, at a write or at a deletion."""
    left = kill_at
    purge, put = lake.s3.delete_object, lake.s3.put_object

    def counted(change: Callable[..., Any]) -> Callable[..., Any]:
        def counting(**arguments: Any) -> Any:
            nonlocal left
            if left == 0:
                raise Killed
            left = None if left is None else left - 1
            return change(**arguments)

        return counting

    lake.s3.has_policy = False
    lake.s3.delete_object, lake.s3.put_object = counted(purge), counted(put)  # type: ignore[method-assign]
    try:
        scrub(lake.store, [], live_personal(lake.store, lambda _: ["a"]))
    except Killed:
        return True
    finally:
        lake.s3.delete_object, lake.s3.put_object = purge, put  # type: ignore[method-assign]
        lake.s3.has_policy = True
    return False


def delivered(lake: Lake) -> str:
    """Publishes a bronze table of one delivery, and returns the key of the delivery record."""
    record = deliver(lake.store, OLD, "a.csv", 1, {'"a"': {"min": VALUE, "max": VALUE, "null_count": "0"}})
    file = lake.store.read(record, Delivery)
    assert file is not None
    lake.store.put(file.object, b"x")
    etag = lake.store.sizes(file.object)[file.object][0]
    lake.store.purge(record, whole=True)
    lake.store.create(record, file.model_copy(update={"etag": etag, "bytes": 1}))
    one = published(lake.store, OLD)
    lake.live[one.table] = one
    lake.write_bronze_metadata()
    publish(lake.store, lake.live, 3)
    lake.catalog.sync(lake.store, ENVIRONMENT)
    return record


def with_value(lake: Lake) -> list[str]:
    """Returns the keys of the objects that contain the value that a scrub removes, in any version."""
    found = (VALUE.encode(), int(VALUE).to_bytes(4, "little"))
    return [
        key
        for key, kept in lake.s3.kept.items()
        if any(body is not None and any(one in readable(body) for one in found) for _, body, _ in kept)
    ]


@pytest.fixture
def personal(monkeypatch: pytest.MonkeyPatch) -> Lake:
    counts = {"null_count": "0", "num_values": "1", "column_size_bytes": "9"}
    monkeypatch.setattr(test_inventory, "STATISTICS", {'"a"': {"min": VALUE, "max": VALUE, **counts}})
    return Lake()


@pytest.mark.parametrize("kill_at", range(35))
def test_no_repair_brings_back_what_a_scrub_has_removed_wherever_the_scrub_was_killed(
    personal: Lake, kill_at: int
) -> None:
    record = delivered(personal)
    assert personal.check().findings == ()
    assert len(with_value(personal)) > 8
    killed = scrubbed(personal, kill_at)
    before, personal.s3.has_policy = dict(personal.s3.objects), False
    assert not killed or {one.remedy for one in personal.repair().findings} <= {UNFINISHED}
    assert personal.s3.objects == before
    # Records that the scrub has replaced are deleted before the next scrub.
    records = (record, personal.old[A].record, personal.live[B].record)
    deleted = {key for key in records if killed and json.loads(personal.s3.objects[key]).get("replaces")}
    for key in deleted:
        personal.delete(key)
    assert not scrubbed(personal)
    assert personal.repair().findings == ()
    assert set(with_value(personal)) <= deleted
    for key in deleted:
        personal.store.purge(key)
    assert with_value(personal) == []


def test_the_scrubs_of_this_test_are_killed_at_any_of_their_changes(personal: Lake) -> None:
    delivered(personal)
    assert not scrubbed(personal, 35)


def test_a_deleted_delivery_record_is_not_restored_without_its_data_file(lake: Lake) -> None:
    record = delivered(lake)
    (file,) = [key for key in lake.s3.objects if key.startswith("bronze/")]
    lake.delete(record)
    lake.store.purge(file, whole=True)
    left = lake.repair()
    assert listed(left) == [("data file", "bronze.orders", True), ("delivery record", "bronze.orders", True)]
    assert "ingest the file a.csv again under another name" in only(left, "delivery record").remedy
    assert lake.store.missing([record]) == [record]
    # With the data file, which the bucket still has, both are restored.
    other = Lake()
    record = delivered(other)
    (file,) = [key for key in other.s3.objects if key.startswith("bronze/")]
    other.delete(record)
    other.delete(file)
    assert other.repair().findings == ()
    assert other.store.missing([record, file]) == []


def bronze_metadata(lake: Lake) -> list[str]:
    return [key for key in lake.s3.objects if "bronze.orders" in key and key.endswith((".avro", ".metadata.json"))]


def test_metadata_that_a_run_creates_again_is_what_it_was(lake: Lake) -> None:
    delivered(lake)
    before, keys = dict(lake.s3.objects), bronze_metadata(lake)
    assert len(keys) == 3
    for key in keys:
        lake.store.purge(key, whole=True)
    lake.write_bronze_metadata()
    assert lake.s3.objects == before
    for key in keys:
        lake.delete(key)
    lake.write_bronze_metadata()
    assert lake.check().findings == ()


def test_metadata_that_was_deleted_and_created_again_may_differ_but_must_describe_the_version(lake: Lake) -> None:
    delivered(lake)
    (key,) = [key for key in bronze_metadata(lake) if key.endswith(".json")]
    content = json.loads(lake.s3.objects[key])
    lake.delete(key)
    # Earlier code wrote the time at which it created the metadata.
    lake.store.create(key, json.dumps({**content, "last-updated-ms": 7}).encode())
    assert lake.check().findings == ()
    lake.overwrite(key, json.dumps({**content, "last-updated-ms": 8}).encode())
    assert only(lake.check(), "metadata").problem == "was overwritten"
    lake.delete(key)
    lake.store.create(key, json.dumps({**content, "table-uuid": "x"}).encode())
    assert "is damaged" in only(lake.check(), "metadata").problem


def test_a_release_that_was_deleted_and_created_again_was_overwritten(lake: Lake) -> None:
    key = ENVIRONMENT.release("r1")
    body = lake.s3.objects[key]
    lake.delete(key)
    lake.store.create(key, body.replace(b'"who": "me"', b'"who": "you"'))
    assert only(lake.check(), "release").problem == "was overwritten"


def test_metadata_is_not_recreated_if_the_bucket_may_have_an_older_version(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = lake.live[A].metadata
    lake.delete(key)
    allowed = lake.s3.get_paginator
    monkeypatch.setattr(lake.s3, "get_paginator", lambda name: MemoryS3.get_paginator(lake.s3, name))
    assert "use the publisher role" in only(lake.repair(), "metadata").remedy
    assert lake.store.missing([key]) == [key]
    monkeypatch.setattr(lake.s3, "get_paginator", allowed)
    assert "restored from S3 object version" in lake.repair().repaired[0][1]


def only(report: Report, kind: str) -> Finding:
    (found,) = [one for one in report.findings if one.kind == kind]
    return found


@pytest.mark.parametrize("body", [b"{}", b"x", b'{"format": 9}', b"[]"])
def test_a_replaced_record_keeps_no_table_from_being_compared_with_glue(lake: Lake, body: bytes) -> None:
    lake.overwrite(lake.live[A].record, body)
    lake.commit(A)
    assert listed(lake.check()) == [("Glue table", A, True), ("record of a version", A, True)]
    left = lake.repair()
    # On AWS, only an administrator can restore the record, so the entry's columns are not known.
    assert listed(left) == [("Glue table", A, True), ("record of a version", A, True)]
    assert "AWS refused PutObject" in only(left, "record of a version").remedy
    assert "can't be read" in only(left, "Glue table").remedy
    assert not only(left, "Glue table").repairable


def test_a_record_that_nothing_can_restore_does_not_end_a_repair(lake: Lake) -> None:
    lake.store.purge(lake.live[A].record, whole=True)
    lake.commit(A)
    assert listed(lake.repair()) == [("Glue table", A, True), ("record of a version", A, True)]


@pytest.mark.parametrize("location", ["s3://lake/secret", "s3://lake/", "", "s3://lake/a"])
def test_an_entry_that_points_to_anything_is_corrected(lake: Lake, location: str) -> None:
    lake.overwrite("secret", b"{}")
    lake.overwrite("a", b'{"current-snapshot-id": 1, "snapshots": 7}')
    lake.s3.refused.add("secret")
    lake.commit(A, location)
    assert listed(lake.check()) == [("Glue table", A, True)]
    assert lake.repair().findings == ()
    assert lake.shows(A)


def test_a_table_that_glue_refuses_is_left_with_the_reason(lake: Lake) -> None:
    lake.commit(A)
    lake.commit(B)
    put = lake.glue._put

    def refuse(database: str, entry: dict[str, Any]) -> dict[str, Any]:
        if entry["Name"] == "a":
            raise refusal("AccessDeniedException")
        return put(database, entry)

    lake.glue._put = refuse  # type: ignore[method-assign, assignment]
    (left,) = lake.repair().findings
    assert (left.table, left.repairable) == (A, False)
    assert left.remedy.startswith("not corrected: AWS refused ")
    assert lake.shows(B)


@pytest.mark.parametrize("body", [b'{"format": 9}', b"x", b"{}"])
@pytest.mark.parametrize("serial", [1, 2])
def test_a_replaced_release_is_a_finding(lake: Lake, serial: int, body: bytes) -> None:
    lake.overwrite(ENVIRONMENT.release(f"r{serial}"), body)
    lake.commit(A)
    found = lake.check()
    assert (only(found, "release").table, only(found, "release").problem) == (f"r{serial}", "was overwritten")
    # Without the live release's record, there is nothing to compare Glue with.
    assert len(found.findings) == (2 if serial == 1 else 1)
    assert listed(lake.repair()) == [("release", f"r{serial}", serial == 2)]


def test_a_release_in_a_format_that_this_code_does_not_know_is_refused_before_anything_is_changed(lake: Lake) -> None:
    lake.store.create(ENVIRONMENT.release("r3"), b'{"format": 9}')
    stored = lake.store.get(ENVIRONMENT.current)
    assert stored is not None
    lake.store.swap(ENVIRONMENT.current, json.dumps({"release": "r3", "serial": 3}).encode(), stored.etag)
    lake.delete(lake.live[A].metadata)
    before = dict(lake.s3.objects)
    with pytest.raises(BuscoError, match="has format 9"):
        lake.repair()
    assert lake.s3.objects == before


@pytest.mark.parametrize("body", [b"x", b"{}", b'{"format": 9}'])
def test_a_pointer_that_was_overwritten_is_restored(lake: Lake, body: bytes) -> None:
    before = lake.s3.objects[ENVIRONMENT.current]
    lake.overwrite(ENVIRONMENT.current, body)
    lake.commit(A)
    assert (only(lake.check(), "pointer").repairable, len(lake.check().findings)) == (True, 1)
    assert lake.repair().findings == ()
    assert lake.s3.objects[ENVIRONMENT.current] == before
    assert lake.shows(A)


def test_a_pointer_that_was_overwritten_and_then_deleted_is_restored(lake: Lake) -> None:
    before = lake.s3.objects[ENVIRONMENT.current]
    lake.overwrite(ENVIRONMENT.current, b"x")
    lake.delete(ENVIRONMENT.current)
    assert lake.repair().findings == ()
    assert lake.s3.objects[ENVIRONMENT.current] == before


def test_an_object_that_nobody_can_read_is_a_finding(lake: Lake) -> None:
    lake.s3.refused.add(lake.old[A].metadata)
    lake.commit(B)
    assert "it can't be read" in only(lake.check(), "metadata").problem
    assert listed(lake.repair()) == [("metadata", A, False)]
    assert lake.shows(B)


@pytest.mark.parametrize("url", ["s3://lake/", "s3://lake/a", "s3://lake/gold/b/prod-b1/a.parquet", 7, None])
def test_metadata_that_names_an_object_of_another_kind_is_a_finding(lake: Lake, url: object) -> None:
    key = lake.old[A].metadata
    content = json.loads(lake.s3.objects[key])
    content["snapshots"][0]["manifest-list"] = url
    lake.store.purge(key, whole=True)
    lake.store.create(key, json.dumps(content).encode())
    assert "is damaged" in only(lake.check(), "metadata").problem


@pytest.mark.parametrize("can_make_metadata", [False, True])
@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("body", [None, b"garbage", b"[]"])
def test_lost_metadata_of_format_1_keeps_no_other_version_from_being_moved(
    older: Lake, body: bytes | None, live: bool, can_make_metadata: bool
) -> None:
    lost = (older.live if live else older.old)[A]
    older.store.purge(lost.metadata, whole=True)
    if body is not None:
        older.store.create(lost.metadata, body)
    older.commit(B)
    left = older.repair(can_make_metadata)
    if body is None and can_make_metadata:
        assert left.findings == ()
    else:
        assert listed(left) == [("format-1 version", A, live), ("metadata", A, live)]
        named = only(left, "format-1 version")
        assert not named.repairable
        assert "Repair its metadata first" in named.remedy
    moved = older.store.missing([ENVIRONMENT.metadata(table, f"{table[-1]}{n}") for table in (A, B) for n in (1, 2)])
    assert len(moved) == len([one for one in left.findings if one.kind == "format-1 version"])
    assert older.glue.tables["busco_gold", "b"]["Parameters"]["metadata_location"].startswith("s3://lake/")
