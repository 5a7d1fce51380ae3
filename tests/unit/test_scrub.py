"""Scrubbing removes values from older metadata, even if an earlier scrub was killed at any point."""

from __future__ import annotations

import json
import zlib
from typing import Any

import pytest
from pyiceberg.manifest import read_manifest_list
from pyiceberg.table.metadata import TableMetadataV2

from busco.lake import layout, versions
from busco.lake.deliveries import Contract
from busco.lake.iceberg_io import Objects
from busco.lake.metadata_json import NONE, location_of
from busco.lake.objects import ObjectStore
from busco.lake.records import Column, DataFile, Delivery, Version, utc_now
from busco.lake.scrub import Scrubbed, live_personal, scrub
from tests.unit.lake import ENVIRONMENT
from tests.unit.memory_s3 import Killed, MemoryS3

CANARY = b"Zqcanary"
COLUMNS = (Column(name="id", type="BIGINT"), Column(name="person", type="VARCHAR"))
COUNTS = {"null_count": "1", "num_values": "3", "column_size_bytes": "9"}
STATISTICS = {
    '"id"': {"min": "1", "max": "3", **COUNTS},
    '"person"': {"min": "Zqcanary A", "max": "Zqcanary B", **COUNTS},
}
CONTRACT = Contract("src", "people", COLUMNS, ("id",), "rows", frozenset({"person"}))
METADATA, RECORD = ENVIRONMENT.metadata("gold.people", "v1"), ENVIRONMENT.version("gold.people", "v1")


class VersionedS3(MemoryS3):
    """A bucket that keeps the old versions of overwritten objects."""

    def __init__(self) -> None:
        super().__init__()
        self.earlier: list[tuple[str, bytes]] = []

    def put_object(self, Bucket: str, Key: str, Body: bytes, **more: Any) -> dict[str, Any]:
        before = self.objects.get(Key)
        response = super().put_object(Bucket, Key, Body, **more)
        if before is not None:
            self.earlier.append((Key, before))
        return response

    def get_paginator(self, name: str) -> Any:
        return _Versions(self) if name == "list_object_versions" else super().get_paginator(name)

    def delete_object(self, Bucket: str, Key: str, VersionId: str) -> None:
        if VersionId == "now":
            del self.objects[Key]
        else:
            self.earlier[int(VersionId)] = ("", b"")

    def everything(self) -> bytes:
        return b"".join(readable(body) for body in (*self.objects.values(), *(body for _, body in self.earlier)))


class _Versions:
    def __init__(self, s3: VersionedS3) -> None:
        self.s3 = s3

    def paginate(self, Bucket: str, Prefix: str) -> list[dict[str, Any]]:
        now = [{"Key": key, "VersionId": "now", "IsLatest": True} for key in self.s3.objects if key.startswith(Prefix)]
        earlier = [
            {"Key": key, "VersionId": str(at), "IsLatest": False}
            for at, (key, _) in enumerate(self.s3.earlier)
            if key and key.startswith(Prefix)
        ]
        return [{"Versions": [*now, *earlier]}]


def readable(body: bytes) -> bytes:
    """Returns a file's content, or the decompressed blocks of an Avro file."""
    if not body.startswith(b"Obj\x01"):
        return body
    found = b""
    for block in body.split(body[-16:])[1:-1]:
        # Two variable-length numbers precede the data.
        start = [at for at, byte in enumerate(block[:20]) if byte < 128][1] + 1
        found += zlib.decompress(block[start:], -15)
    return found


@pytest.fixture
def store() -> ObjectStore:
    made = ObjectStore(VersionedS3(), "lake")
    file = DataFile(key="gold/people/data_0.parquet", rows=3, bytes=100, statistics=STATISTICS)
    version = Version(
        table="gold.people", version="v1", columns=COLUMNS, rows=3, bytes=100, files=(file,), personal=(),
        metadata=METADATA,
    )  # fmt: skip
    made.create(RECORD, version)
    versions.write_metadata(made, ENVIRONMENT, version, [versions.ManifestFiles("v1", lambda: [file])], NONE, {})
    delivery = Delivery(
        table="bronze.people", file_name="people.csv", number=1, object="bronze/p", attempt="a", content_hash="c",
        contract_hash="h", columns=COLUMNS, rows=3, quarantined=0, bytes=100, statistics=STATISTICS,
        ingested_at=utc_now(),
    )  # fmt: skip
    made.create(layout.delivery("src", "people", "people.csv", 1), delivery)
    assert made.client.everything().count(CANARY) == 6
    # The bucket policy lets nobody replace these objects, so it is relaxed while scrubbing.
    made.client.has_policy = False
    return made


def scrubbed(store: ObjectStore, dry: bool = False) -> Scrubbed:
    return scrub(store, [CONTRACT], live_personal(store, lambda _: ()), dry)


def bounds(store: ObjectStore) -> tuple[dict[int, bytes], dict[int, int]]:
    """Returns the lower bounds and null counts of the version's only file, as an Iceberg reader sees them."""
    stored = store.get(METADATA)
    assert stored is not None
    metadata = TableMetadataV2.model_validate_json(stored.body)
    (manifest,) = read_manifest_list(Objects(store).new_input(metadata.snapshots[0].manifest_list))
    assert manifest.manifest_length == len(Objects(store).new_input(manifest.manifest_path))
    (entry,) = manifest.fetch_manifest_entry(Objects(store))
    return entry.data_file.lower_bounds or {}, entry.data_file.null_value_counts


def test_records_and_manifests_lose_their_values_and_keep_their_counts(store: ObjectStore) -> None:
    _, counts = bounds(store)
    found = scrubbed(store, dry=True)
    assert (len(found.with_values), found.with_statistics, found.with_bounds) == (1, (RECORD,), (METADATA,))
    assert store.client.everything().count(CANARY) == 6
    assert scrubbed(store) == found
    assert CANARY not in store.client.everything()
    # The version is in no release, so it is not known which of its columns are personal.
    assert bounds(store) == ({}, counts)
    record = store.read(found.with_values[0], Delivery)
    assert record is not None
    assert record.statistics == {'"id"': STATISTICS['"id"'], '"person"': COUNTS}
    assert (scrubbed(store).with_values, scrubbed(store).with_bounds) == ((), ())


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("write", range(5))
def test_a_scrub_that_was_killed_leaves_readable_metadata_and_is_finished_by_the_next(
    store: ObjectStore, write: int, after: bool
) -> None:
    store.client.kill_at, store.client.kill_after = write, after
    with pytest.raises(Killed):
        scrubbed(store)
    bounds(store)
    # From the first change on, repairs know that older versions can contain values that were removed.
    changed = store.client.writes[-1] != layout.SCRUBBING and (write, after) != (0, False)
    assert list(store.keys(layout.SCRUBBING)) or not changed
    scrubbed(store)
    assert CANARY not in store.client.everything()
    assert bounds(store)[0] == {}
    assert list(store.keys(layout.SCRUBBING)) == []


def test_metadata_of_other_programs_and_damaged_objects_are_listed_and_all_others_are_scrubbed(
    store: ObjectStore,
) -> None:
    stored = store.get(METADATA)
    assert stored is not None
    content = json.loads(stored.body)
    content["snapshots"] *= 2
    committed = f"{location_of(METADATA)}/metadata/00002-0f3c.metadata.json"
    content["snapshots"][1]["snapshot-id"] = 7
    damaged = [
        committed,
        ENVIRONMENT.metadata("gold.people", "v2"),
        ENVIRONMENT.metadata("gold.people", "v3"),
        ENVIRONMENT.version("gold.people", "v2"),
        layout.delivery("src", "people", "other.csv", 1),
    ]
    bodies = [json.dumps(content).encode(), b"x", stored.body.replace(b"snap-", b"lost-"), b"{}", b'{"format": 9}']
    for key, body in zip(damaged, bodies, strict=True):
        store.create(key, body)
    found = scrubbed(store, dry=True)
    assert set(found.unchecked) == set(damaged)
    assert scrubbed(store) == found
    assert (found.with_statistics, found.with_bounds) == ((RECORD,), (METADATA,))
    assert CANARY not in store.client.everything()
