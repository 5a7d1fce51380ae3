"""Removes values of personal data from metadata that was written when metadata still contained such values.

Delivery records lose the bounds of pii columns, and Iceberg manifests lose those of personal columns. The record of a
live version specifies which columns are personal. For all other versions, this is no longer certain, because columns
may have been marked as personal since. So these versions lose all bounds, which only makes reading them slower. Data
files are not changed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from pyiceberg.manifest import ManifestFile, read_manifest_list, write_manifest, write_manifest_list
from pyiceberg.partitioning import PartitionSpec
from pyiceberg.schema import Schema, index_by_id
from pyiceberg.table.metadata import TableMetadataV2

from busco.lake import layout
from busco.lake.bounds import without_bounds
from busco.lake.deliveries import Contract
from busco.lake.iceberg_io import Objects, key_of
from busco.lake.layout import EnvironmentLayout
from busco.lake.objects import ObjectStore, Stored
from busco.lake.records import Delivery, Version
from busco.lake.releases import read_live

# The suffix that is added to a manifest's name to name the copy without bounds.
_CLEAN = ".clean.avro"


@dataclass(frozen=True)
class Scrubbed:
    """How many delivery records and versions were checked, and the keys of those that contained values to remove."""

    deliveries: int
    with_values: tuple[str, ...]
    versions: int
    with_bounds: tuple[str, ...]


def scrub(
    store: ObjectStore, contracts: Iterable[Contract], personal: Callable[[Version], Collection[str]], dry: bool = False
) -> Scrubbed:
    """Removes values of personal data from the metadata of all environments. A scrub can be killed and repeated safely.

    If the bucket keeps old versions of the replaced objects, these old versions are deleted.

    Args:
        contracts: the contracts of all sources; deliveries of any other source lose all bounds.
        personal: returns the personal columns of a live version.
        dry: only report what would be done.
    """
    pii = {f"{contract.source}.{contract.table}": contract.pii for contract in contracts}
    records = list(store.keys(layout.DELIVERIES))
    found = []
    for key in records:
        stored = store.get(key)
        if stored is not None and (body := _delivery(key, stored, pii)) is not None:
            found.append(key)
            if not dry:
                store.swap(key, body, stored.etag)
        if not dry:
            # Purge unchanged records too: an earlier scrub may have been killed between its swap and its purge.
            store.purge(key)
    live: dict[str, Collection[str]] = {}
    metadata: list[str] = []
    for name in store.folders(layout.ENVIRONMENTS):
        environment = EnvironmentLayout(name)
        release = read_live(store, environment)
        live |= {one.metadata: personal(one) for one in (release.release.tables.values() if release else ())}
        metadata += [key for key in store.keys(environment.iceberg("")) if key.endswith(".metadata.json")]
    bounded = tuple(key for key in metadata if _version(store, key, live.get(key), dry))
    return Scrubbed(len(records), tuple(found), len(metadata), bounded)


def _delivery(key: str, stored: Stored, pii: Mapping[str, frozenset[str]]) -> bytes | None:
    """Returns a delivery record without the bounds of pii columns, or None if the record has no such bounds."""
    record = stored.parse(Delivery)
    table = key.removeprefix(layout.DELIVERIES).split("/", 1)[0]
    hidden = pii.get(table, frozenset(column.name for column in record.columns))
    statistics = without_bounds(record.statistics, record.columns, hidden)
    if statistics == record.statistics:
        return None
    # Keep fields that a later release of the platform has added.
    return json.dumps({**json.loads(stored.body), "statistics": statistics}, indent=1).encode()


def _version(store: ObjectStore, key: str, personal: Collection[str] | None, dry: bool) -> bool:
    """Removes bounds from a version's manifests and returns whether there were any.

    The manifest list is replaced in a single write: before the write, readers find the old manifests; after it, the new
    ones. A reader that has read the old list but not yet its manifests fails, and succeeds when it retries.
    """
    stored = store.get(key)
    if stored is None:
        return False
    metadata = TableMetadataV2.model_validate_json(stored.body)
    schema, spec, (snapshot,) = metadata.schemas[0], metadata.partition_specs[0], metadata.snapshots
    hidden = {
        number
        for field in schema.fields
        if personal is None or field.name in personal
        for number in index_by_id(Schema(field))
    }
    files = Objects(store)
    manifests = list(read_manifest_list(files.new_input(snapshot.manifest_list)))
    number = snapshot.snapshot_id
    clean = [_manifest(files, manifest, number, schema, spec, hidden, dry) for manifest in manifests]
    found = any(one is not None for one in clean)
    if found and not dry:
        output = files.new_output(snapshot.manifest_list)
        sequence = snapshot.sequence_number or 1
        with write_manifest_list(2, output, number, None, sequence, "deflate") as writer:
            writer.add_manifests([new or old for new, old in zip(clean, manifests, strict=True)])
    if not dry:
        for now in (new or old for new, old in zip(clean, manifests, strict=True)):
            # Purge manifests of earlier scrubs too: such a scrub may have been killed before it purged them.
            if (original := now.manifest_path.removesuffix(_CLEAN)) != now.manifest_path:
                store.purge(key_of(store, original), whole=True)
        store.purge(key_of(store, snapshot.manifest_list))
    return found


def _manifest(
    files: Objects,
    manifest: ManifestFile,
    snapshot: int,
    schema: Schema,
    spec: PartitionSpec,
    hidden: set[int],
    dry: bool,
) -> ManifestFile | None:
    """Writes a copy of a manifest without the bounds of the `hidden` fields, next to the original.

    Returns:
        The copy, or None if the manifest has no such bounds. With `dry`, nothing is written, and the manifest itself
        is returned instead of the copy.
    """
    entries = manifest.fetch_manifest_entry(files)
    if not any(hidden & {*(e.data_file.lower_bounds or ()), *(e.data_file.upper_bounds or ())} for e in entries):
        return None
    if dry:
        return manifest
    for entry in entries:
        for kept in (entry.data_file.lower_bounds, entry.data_file.upper_bounds):
            for number in hidden & {*(kept or ())}:
                del kept[number]
    output = files.new_output(manifest.manifest_path + _CLEAN)
    with write_manifest(2, spec, schema, output, snapshot, "deflate") as writer:
        for entry in entries:
            writer.add(entry)
    return writer.to_manifest_file()
