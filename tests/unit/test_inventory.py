"""Which objects the releases name is found with few requests, whatever the number of releases that share them."""

from __future__ import annotations

import json
import tracemalloc
from collections import Counter
from typing import Any

import pytest
from pyiceberg.manifest import read_manifest_list

from busco.catalog import repair
from busco.errors import BuscoError
from busco.lake import avro, deliveries, drift, versions
from busco.lake.contents import BRONZE, complete, encoded, read_pages, read_record, write_record
from busco.lake.drift import inspect, repair_objects
from busco.lake.formats import upgrade
from busco.lake.iceberg_io import Objects
from busco.lake.inventory import Inventory, Survey
from busco.lake.layout import NULL_FOLDER
from busco.lake.manifests import manifests_of
from busco.lake.metadata_json import NONE, Descriptions, copy_metadata, edited, location_of
from busco.lake.objects import ObjectStore
from busco.lake.records import Column, Current, DataFile, Delivery, Published, Release, Version, utc_now
from busco.lake.scrub import live_personal, scrub
from tests.unit.lake import ENVIRONMENT
from tests.unit.memory_s3 import MemoryS3
from tests.unit.test_deliveries import OLD, deliver, published

TABLES = [f"gold.t{number}" for number in range(20)]
STATISTICS = {'"a"': {"min": "1", "max": "2", "null_count": "0", "num_values": "1", "column_size_bytes": "9"}}


class CountingS3(MemoryS3):
    """Counts the requests."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: Counter[str] = Counter()

    def get_object(self, **arguments: Any) -> dict[str, Any]:
        self.requests["get"] += 1
        return super().get_object(**arguments)

    def paginate(self, **arguments: Any) -> Any:
        self.requests["list"] += 1
        return super().paginate(**arguments)

    def head_object(self, **arguments: Any) -> dict[str, Any]:
        self.requests["head"] += 1
        return super().head_object(**arguments)


@pytest.fixture
def s3() -> CountingS3:
    return CountingS3()


@pytest.fixture
def store(s3: CountingS3) -> ObjectStore:
    return ObjectStore(s3, "lake")


def made(store: ObjectStore, table: str, version: str) -> Published:
    """Writes a version with one data file, its record and its metadata."""
    file = DataFile(key=f"{ENVIRONMENT.data(table, version)}/a.parquet", rows=1, bytes=1, statistics=STATISTICS)
    store.put(file.key, b"x")
    file = file.model_copy(update={"etag": store.sizes(file.key)[file.key][0]})
    record = Version(
        table=table, version=version, columns=(Column(name="a", type="INTEGER"),), rows=1, bytes=1, files=(file,),
        personal=(), made_at=utc_now(),
    )  # fmt: skip
    key = ENVIRONMENT.version(table, version)
    etag = write_record(store, key, record)
    whole = record.model_copy(update={"metadata": ENVIRONMENT.metadata(table, version)})
    manifests = manifests_of(store, whole, ())
    versions.write_metadata(store, ENVIRONMENT, whole, manifests, NONE, {"busco.version": version})
    return Published.of(whole, key, whole.metadata, etag)


def publish(store: ObjectStore, tables: dict[str, Published], serial: int) -> None:
    release = Release(
        release=f"r{serial}", previous=f"r{serial - 1}" if serial > 1 else None, kind="publish", environment="prod",
        run="run", epoch=1, tables=tables, who="me", created_at=utc_now(),
    )  # fmt: skip
    store.create(ENVIRONMENT.release(release.release), release)
    live = store.get(ENVIRONMENT.current)
    current = Current(release=release.release, serial=serial)
    store.create(ENVIRONMENT.current, current) if live is None else store.swap(ENVIRONMENT.current, current, live.etag)


def survey(store: ObjectStore) -> Survey:
    return Inventory(store, ENVIRONMENT).survey()


def test_each_record_is_read_once_however_many_releases_name_it(store: ObjectStore, s3: CountingS3) -> None:
    tables = {table: made(store, table, f"{table[6:]}v0") for table in TABLES}
    releases = 300
    for serial in range(1, releases + 1):
        table = TABLES[serial % len(TABLES)]
        tables[table] = made(store, table, f"{table[6:]}v{serial}")
        publish(store, tables, serial)
    s3.requests.clear()
    inventory = Inventory(store, ENVIRONMENT)
    found = inventory.survey()
    assert found.broken == ()
    distinct = {one.version for release in found.releases for one in release.tables.values()}
    assert len(found.releases) == releases
    # releases, and for each version its record, its metadata and the manifest list
    assert s3.requests["get"] == 1 + releases + 3 * len(distinct)
    # releases; and for each table: records, data files, metadata and manifests
    assert s3.requests["list"] == 1 + 4 * len(TABLES)
    assert s3.requests["head"] == 0
    # a second survey reads what can change, and lists again
    s3.requests.clear()
    assert inventory.survey() == found
    assert s3.requests["get"] == 1


def test_releases_in_memory_share_their_versions(store: ObjectStore) -> None:
    tables = {table: made(store, table, "v1") for table in TABLES[:2]}
    publish(store, tables, 1)
    publish(store, tables | {TABLES[0]: made(store, TABLES[0], "v2")}, 2)
    new, old = survey(store).releases
    assert old.tables == tables
    assert new.tables[TABLES[1]] is old.tables[TABLES[1]]
    assert new.tables[TABLES[0]] != old.tables[TABLES[0]]


def test_statistics_are_not_kept_in_memory(store: ObjectStore) -> None:
    publish(store, {"gold.t": made(store, "gold.t", "v1")}, 1)
    first = survey(store)
    value = "x" * 1_000_000
    files = tuple(
        DataFile(
            key=f"{ENVIRONMENT.data('gold.w', 'v1')}/{number}.parquet",
            rows=1,
            bytes=1,
            statistics={"a": {"min": value}},
        )
        for number in range(10)
    )
    wide = Version(table="gold.w", version="v1", columns=(), rows=1, bytes=1, files=files)
    key = ENVIRONMENT.version("gold.w", "v1")
    publish(
        store,
        {"gold.w": Published.of(wide, key, ENVIRONMENT.metadata("gold.w", "v1"), write_record(store, key, wide))},
        2,
    )
    inventory = Inventory(store, ENVIRONMENT)
    tracemalloc.start()
    found = inventory.survey()
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found.releases) == len(first.releases) + 1
    assert kept < 10 * len(value)


def test_objects_of_kept_releases_and_of_the_live_one_are_told_apart(store: ObjectStore, s3: CountingS3) -> None:
    first, second = made(store, "gold.t", "v1"), made(store, "gold.t", "v2")
    publish(store, {"gold.t": first}, 1)
    publish(store, {"gold.t": second}, 2)
    del s3.objects[first.metadata], s3.objects[second.record]
    findings = inspect(store, survey(store))
    assert [(one.kind, one.live, one.problem) for one in findings] == [
        ("metadata", False, "was deleted"),
        ("record of a version", True, "was deleted"),
    ]
    assert "(not in the live release)" in findings[0].lines()[0]


def test_an_object_that_no_release_names_is_not_compared(store: ObjectStore) -> None:
    publish(store, {"gold.t": made(store, "gold.t", "v1")}, 1)
    before = survey(store)
    made(store, "gold.t", "unpublished")
    store.put("gold/t/prod-unpublished/b.parquet", b"anything")
    assert survey(store) == before


def test_records_that_a_scrub_has_replaced_are_not_drift(
    store: ObjectStore, s3: CountingS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the scrub runs with the statement RecordsThatAreWrittenOnce removed from the bucket policy
    s3.has_policy = False
    monkeypatch.setattr(ObjectStore, "purge", lambda *_, **__: None)
    published = made(store, "gold.t", "v1")
    publish(store, {"gold.t": published}, 1)
    assert scrub(store, [], live_personal(store, lambda _: ["a"])).with_bounds
    assert store.sizes(published.record)[published.record][0] != published.etag
    assert survey(store).broken == ()
    # a record that somebody else has replaced is
    stored = store.get(published.record)
    assert stored is not None
    store.swap(published.record, stored.parse(Version).model_copy(update={"replaces": ""}), stored.etag)
    assert [one.named.kind for one in survey(store).broken] == ["record of a version"]


@pytest.mark.parametrize("body", [b"", b"{}", b"{", b"[]", b'{"snapshots": [{}]}', b"Obj\x01"])
@pytest.mark.parametrize("kind", ["metadata", "manifest list"])
def test_unreadable_metadata_is_a_finding(store: ObjectStore, s3: CountingS3, kind: str, body: bytes) -> None:
    published = made(store, "gold.t", "v1")
    publish(store, {"gold.t": published}, 1)
    listed = next(store.keys(f"{location_of(published.metadata)}/metadata/snap-"))
    s3.objects[published.metadata if kind == "metadata" else listed] = body
    (finding,) = inspect(store, survey(store))
    assert (finding.kind, finding.problem.partition(":")[0]) == (kind, "is damaged")


def test_what_nothing_can_restore_is_left_with_what_to_do(
    store: ObjectStore, s3: CountingS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = made(store, "gold.t", "v1")
    publish(store, {"gold.t": published}, 1)
    data = f"{ENVIRONMENT.data('gold.t', 'v1')}/a.parquet"
    del s3.objects[data]
    inventory, done = Inventory(store, ENVIRONMENT), list[Any]()
    (left,) = repair_objects(store, ENVIRONMENT, inventory, None, lambda *one: done.append(one))
    assert (left.where, left.repairable, done) == (store.url(data), False, [])
    assert "publisher role" in left.remedy
    monkeypatch.setattr(drift, "versions", lambda *_: [])
    (left,) = inspect(store, inventory.survey())
    assert "no version in the bucket has the original content: rebuild the table" in left.remedy
    assert "busco dbt build --select t --full-refresh --publish" in left.remedy
    del s3.objects[published.metadata]
    (_, lost) = sorted(inspect(store, inventory.survey()), key=lambda one: one.kind)
    assert (lost.kind, lost.repairable) == ("metadata", True)
    assert "run this in dbt's environment: busco release repair" in lost.remedy


def test_a_repair_of_many_lost_objects_does_not_compare_everything_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift, "versions", lambda *_: [])
    listings = []
    for lost in (1, len(TABLES)):
        s3 = CountingS3()
        store = ObjectStore(s3, "lake")
        publish(store, {table: made(store, table, "v1") for table in TABLES}, 1)
        for table in TABLES[:lost]:
            del s3.objects[ENVIRONMENT.metadata(table, "v1")]
        s3.requests.clear()
        assert repair.repair(store, ENVIRONMENT, None, "me", can_make_metadata=True).findings == ()
        listings.append(s3.requests["list"])
    assert listings[1] <= listings[0]


def test_each_delivery_record_is_read_once_to_recreate_all_manifests_of_a_table(
    store: ObjectStore, s3: CountingS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drift, "versions", lambda *_: [])
    monkeypatch.setattr(deliveries, "_BOUNDARY", 10)
    for number in range(100):
        record = store.read(deliver(store, OLD, f"{number}.csv", 1), Delivery)
        assert record is not None
        store.put(record.object, b"x")
    one = published(store, OLD)
    record = read_record(store, one)
    pages = read_pages(store, one.table, record.pages)
    whole = complete(one, record, pages)
    manifests = manifests_of(store, whole, pages)
    versions.write_metadata(store, BRONZE, whole, manifests, NONE, {"busco.version": one.version})
    publish(store, {one.table: one}, 1)
    lost = [key for key in s3.objects if "/manifests/" in key]
    assert len(lost) == len(pages) > 5
    for key in lost:
        del s3.objects[key]
    s3.requests.clear()
    assert repair.repair(store, ENVIRONMENT, None, "me", can_make_metadata=True).findings == ()
    # the delivery records; the release, the version's record, its pages, metadata and manifest list; the pointer
    assert s3.requests["get"] <= 100 + 2 * (4 + len(pages)) + 10


def test_a_survey_of_nothing_finds_nothing(store: ObjectStore) -> None:
    assert survey(store) == Survey()


def test_an_attempt_to_publish_that_never_ended_is_not_drift(
    store: ObjectStore, s3: CountingS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(store, {"gold.t": made(store, "gold.t", "v1")}, 1)
    del s3.objects[ENVIRONMENT.current]
    monkeypatch.setattr(drift, "versions", lambda *_: [])
    assert inspect(store, survey(store)) == []


# Avro --------------------------------------------------------------------------------------------------------------


def test_manifest_lists_are_read_as_an_avro_library_reads_them(store: ObjectStore) -> None:
    published = made(store, "gold.t", "v1")
    key = next(store.keys(f"{location_of(published.metadata)}/metadata/snap-"))
    stored = store.get(key)
    assert stored is not None
    (expected,) = read_manifest_list(Objects(store).new_input(store.url(key)))
    (found,) = avro.read(stored.body)
    assert found["manifest_path"] == expected.manifest_path
    manifest = store.key(expected.manifest_path)
    assert found["manifest_length"] == expected.manifest_length == store.sizes(manifest)[manifest][1]
    assert found["added_snapshot_id"] == expected.added_snapshot_id
    assert found["added_rows_count"] == expected.added_rows_count
    assert (found["content"], found["sequence_number"]) == (0, expected.sequence_number)


def test_a_cut_or_changed_avro_file_is_refused(store: ObjectStore) -> None:
    published = made(store, "gold.t", "v1")
    key = next(store.keys(f"{location_of(published.metadata)}/metadata/snap-"))
    stored = store.get(key)
    assert stored is not None
    body = stored.body
    for size in (0, 3, 4, 100, len(body) // 2, len(body) - 1):
        with pytest.raises(ValueError, match=r"[Aa]vro"):
            avro.read(body[:size])
    with pytest.raises(ValueError, match="marker"):
        avro.read(body[:-1] + bytes([body[-1] ^ 1]))


def test_partition_values_that_a_record_lacks_are_taken_from_the_files_keys(store: ObjectStore) -> None:
    columns = (Column(name="day", type="DATE"), Column(name="a =b", type="VARCHAR"))
    version = Version(table="gold.t", version="v1", columns=columns, partition_by=("day", "a =b"), rows=3, bytes=3)
    folder = ENVIRONMENT.data("gold.t", "v1")
    keys = [f"{folder}/day=2018-01-01/a%20%3Db=x%2Fy%3D/a.parquet", f"{folder}/day={NULL_FOLDER}/a%20%3Db=/a.parquet"]
    files = tuple(DataFile(key=key, rows=1, bytes=1) for key in keys)
    recorded = DataFile(key=keys[0], rows=1, bytes=1, partition={"day": "2018-01-01", "a =b": "x/y="})
    (manifest,) = manifests_of(store, version.model_copy(update={"files": (*files, recorded)}), ())
    assert [file.partition for file in manifest.read()] == [recorded.partition, {"a =b": ""}, recorded.partition]
    unknown = DataFile(key=f"{folder}/a.parquet", rows=1, bytes=1)
    (manifest,) = manifests_of(store, version.model_copy(update={"files": (unknown,)}), ())
    with pytest.raises(BuscoError, match="neither the record of gold.t nor the key has a value for day, a =b"):
        manifest.read()


def test_an_object_that_something_else_has_written_under_the_key_of_a_version_is_not_used(
    store: ObjectStore, s3: CountingS3
) -> None:
    one, described = made(store, "gold.t", "v1"), Descriptions("", {"a": "the key"})
    target = ENVIRONMENT.metadata("gold.t", "v1", described.hash)
    copy_metadata(store, one.metadata, target, described)
    written, before = json.loads(s3.objects[target]), s3.objects[target]
    copy_metadata(store, one.metadata, target, described)
    # times can differ if two processes write the same metadata, and descriptions if a repair did not find them
    undescribed = edited(written, written["location"], NONE)
    for similar in (written | {"last-updated-ms": 1}, undescribed):
        s3.objects[target] = json.dumps(similar).encode()
        copy_metadata(store, one.metadata, target, described)
    for other in (b"x", b"[]", json.dumps(written | {"location": "elsewhere"}).encode(), s3.objects[one.metadata]):
        s3.objects[target] = other
        with pytest.raises(BuscoError, match="already exists, but with different content"):
            copy_metadata(store, one.metadata, target, described)
        assert s3.objects[target] == other
    s3.objects[target] = before

    whole = read_record(store, one)
    inline = Published.model_validate(whole.model_copy(update={"metadata": one.metadata}).model_dump(mode="json"))
    assert upgrade(store, ENVIRONMENT, {"gold.t": inline})["gold.t"].etag == one.etag
    (file,) = whole.files
    elsewhere = whole.model_copy(update={"files": (file.model_copy(update={"key": "gold/t/prod-other/a.parquet"}),)})
    for other in (b"x", encoded(elsewhere), encoded(whole.model_copy(update={"rows": 2}))):
        s3.objects[one.record] = other
        with pytest.raises(BuscoError, match="already exists, but with different content"):
            upgrade(store, ENVIRONMENT, {"gold.t": inline})
