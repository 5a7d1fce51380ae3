"""Values of personal data taken out of metadata that was written before nobody kept them there.

Delivery records lose the bounds of pii columns, Iceberg manifests those of personal columns. Of a version that is live
its record says which these are; of all others nobody knows for sure any more (a column may have been marked since), so
that they lose all bounds, which only makes reading them slower. Data files are left alone.
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

# What the name of a manifest gets in addition when it takes the place of one with bounds.
_CLEAN = ".clean.avro"


@dataclass(frozen=True)
class Scrubbed:
    """How many records and tables' versions there are, and the keys of those that had values."""

    deliveries: int
    with_values: tuple[str, ...]
    versions: int
    with_bounds: tuple[str, ...]


def scrub(
    store: ObjectStore, contracts: Iterable[Contract], personal: Callable[[Version], Collection[str]], dry: bool = False
) -> Scrubbed:
    """Takes values of personal data out of the metadata of all environments. It can be repeated, and killed.

    Earlier versions of the objects that it replaces are deleted, where the bucket keeps some.

    Args:
        contracts: the sources'; a delivery of any other loses all bounds.
        personal: the personal columns of a live version.
        dry: only say what would be done.
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
            # of a scrub that was killed, too
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
    """A delivery's record without bounds; None where it has none to lose."""
    record = stored.parse(Delivery)
    table = key.removeprefix(layout.DELIVERIES).split("/", 1)[0]
    hidden = pii.get(table, frozenset(column.name for column in record.columns))
    statistics = without_bounds(record.statistics, record.columns, hidden)
    if statistics == record.statistics:
        return None
    # what a later release of the platform has added to it stays
    return json.dumps({**json.loads(stored.body), "statistics": statistics}, indent=1).encode()


def _version(store: ObjectStore, key: str, personal: Collection[str] | None, dry: bool) -> bool:
    """Takes bounds out of a version's manifests; whether there were any.

    The manifest list is replaced in one write: until then a reader finds the old manifests, and afterwards the new
    ones. One that is between the two reads fails, and is well when it asks again.
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
            # of a scrub that was killed, too
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
    """The manifest without bounds of some fields, written beside the one that has them; None where it has none."""
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
