"""Removes values of personal data from metadata that was written when metadata still contained such values.

Delivery records lose the bounds of pii columns, and Iceberg manifests lose those of personal columns. The record of a
live version specifies which columns are personal. For all other versions, this is no longer certain, because columns
may have been marked as personal since. So these versions lose all bounds, which only makes reading them slower. Data
files are not changed.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

from botocore.exceptions import ParamValidationError
from pyiceberg.manifest import ManifestFile, read_manifest_list, write_manifest, write_manifest_list
from pyiceberg.partitioning import PartitionSpec
from pyiceberg.schema import Schema, index_by_id
from pyiceberg.table.metadata import TableMetadataV2

from busco.errors import BuscoError
from busco.lake import layout
from busco.lake.bounds import without_bounds
from busco.lake.contents import encoded, read_version
from busco.lake.deliveries import Contract
from busco.lake.iceberg_io import Objects
from busco.lake.layout import EnvironmentLayout
from busco.lake.objects import ObjectStore
from busco.lake.records import Delivery, Version
from busco.lake.releases import live_releases

# The name of a manifest's copy without bounds is the manifest's name with this suffix.
_CLEAN = ".clean.avro"
# What reading a damaged object raises, or one that names a missing object.
_DAMAGED = (
    AttributeError, BuscoError, EOFError, LookupError, OSError, ParamValidationError, TypeError, ValueError, zlib.error,
)  # fmt: skip


@dataclass(frozen=True)
class Scrubbed:
    """How many delivery records, records of versions, and Iceberg metadata files were checked.

    For each kind, it also has the keys of those that contained values to remove. `unchecked` are the keys of objects
    that could not be checked, because they are damaged, name missing objects, or were written by another program.
    """

    deliveries: int
    with_values: tuple[str, ...]
    versions: int
    with_statistics: tuple[str, ...]
    metadata: int
    with_bounds: tuple[str, ...]
    unchecked: tuple[str, ...] = ()


def scrub(
    store: ObjectStore, contracts: Iterable[Contract], live: Mapping[str, Collection[str]], dry: bool = False
) -> Scrubbed:
    """Removes values of personal data from the metadata of all environments. A scrub can be killed and repeated safely.

    If the bucket keeps old versions of the replaced objects, these old versions are deleted. From the first change
    until all of them have been deleted, `layout.SCRUBBING` exists, so that no repair restores one.

    Args:
        contracts: the contracts of all sources; deliveries of any other source lose all bounds.
        live: the personal columns of each live version, by the version's id (`live_personal`).
        dry: only report what would be done.
    """
    pii = {f"{contract.source}.{contract.table}": contract.pii for contract in contracts}
    records = list(store.keys(layout.DELIVERIES))
    metadata: list[str] = []
    versions: list[str] = []
    for name in store.folders(layout.ENVIRONMENTS):
        environment = EnvironmentLayout(name)
        versions += store.keys(environment.versions)
        for folder in environment.all_metadata:
            metadata += [key for key in store.keys(folder) if key.endswith(".metadata.json")]
    unchecked: list[str] = []

    def found(keys: Iterable[str], clean: Callable[[str], bool]) -> tuple[str, ...]:
        """Calls `clean` for each key, and returns the keys for which it returned that there were values to remove."""
        with_values = []
        for key in keys:
            try:
                if clean(key):
                    with_values.append(key)
            except _DAMAGED:
                unchecked.append(key)
        return tuple(with_values)

    if not dry:
        store.put(layout.SCRUBBING, b"{}")
    scrubbing = _Manifests(store, dry)
    result = Scrubbed(
        deliveries=len(records),
        with_values=found(records, lambda key: _delivery(store, key, pii, dry)),
        versions=len(versions),
        with_statistics=found(versions, lambda key: _record(store, key, live, dry)),
        metadata=len(metadata),
        with_bounds=found(metadata, lambda key: scrubbing.clean(key, live.get(layout.version_of(key)))),
    )
    if not dry:
        scrubbing.purge()
        store.purge(layout.SCRUBBING, whole=True)
    return replace(result, unchecked=tuple(unchecked))


def live_personal(store: ObjectStore, personal: Callable[[Version], Collection[str]]) -> dict[str, Collection[str]]:
    """Returns the personal columns of each live version of all environments, by the version's id.

    Versions whose records are damaged are left out, and so are those of stale tables: they were built before their
    inputs were, so a column that has been marked since may have been passed on to them.

    Args:
        personal: returns the personal columns of a live version.
    """
    tables: list[Version] = []
    for release in live_releases(store).values():
        for table, published in release.tables.items():
            if table not in release.stale:
                with suppress(*_DAMAGED):  # all of its values are removed then
                    tables.append(read_version(store, published))
    return {version.version: personal(version) for version in tables}


def _record(store: ObjectStore, key: str, live: Mapping[str, Collection[str]], dry: bool) -> bool:
    """Removes bounds from a version's own record and returns whether there were any."""
    stored = store.get(key)
    if stored is None:
        return False
    version = stored.parse(Version)
    hidden = live.get(version.version, [column.name for column in version.columns])
    files = tuple(
        file.model_copy(update={"statistics": without_bounds(file.statistics, version.columns, hidden)})
        for file in version.files
    )
    found = files != version.files
    if found and not dry:
        clean = version.model_copy(update={"files": files, "replaces": version.replaces or stored.etag})
        store.swap(key, encoded(clean), stored.etag)
    if not dry:
        store.purge(key)
    return found


def _delivery(store: ObjectStore, key: str, pii: Mapping[str, frozenset[str]], dry: bool) -> bool:
    """Removes the bounds of pii columns from a delivery record and returns whether there were any."""
    stored = store.get(key)
    if stored is None:
        return False
    record = stored.parse(Delivery)
    table = key.removeprefix(layout.DELIVERIES).split("/", 1)[0]
    hidden = pii.get(table, frozenset(column.name for column in record.columns))
    statistics = without_bounds(record.statistics, record.columns, hidden)
    found = statistics != record.statistics
    if found and not dry:
        # Keep fields that a later release of the platform has added.
        content = json.loads(stored.body)
        clean = {**content, "statistics": statistics, "replaces": record.replaces or stored.etag}
        store.swap(key, json.dumps(clean, indent=1).encode(), stored.etag)
    if not dry:
        # Purge unchanged records too: an earlier scrub may have been killed between its swap and its purge.
        store.purge(key)
    return found


class _Manifests:
    """Removes bounds from the manifests of versions. Several metadata files can name the same manifest."""

    def __init__(self, store: ObjectStore, dry: bool) -> None:
        self.store, self.dry = store, dry
        self.files = Objects(store)
        self._named: set[str] = set()
        self._replaced: set[str] = set()

    def clean(self, key: str, personal: Collection[str] | None) -> bool:
        """Removes bounds from the manifests that a metadata file names, and returns whether there were any.

        The manifest list is replaced in a single write: before the write, readers find the old manifests; after it, the
        new ones. A reader that has read the old list but not yet its manifests fails, and succeeds when it retries.

        Args:
            personal: the version's personal columns; None if they are not known, so that all bounds are removed.

        Raises:
            one of `_DAMAGED`: the metadata is not as this platform writes it, or names a missing object.
        """
        if not key.rpartition("/")[2].startswith("00001-"):
            raise ValueError("another program has committed to the table")
        stored = self.store.get(key)
        if stored is None:
            return False
        metadata = TableMetadataV2.model_validate_json(stored.body)
        schema, spec, (snapshot,) = metadata.schemas[0], metadata.partition_specs[0], metadata.snapshots
        hidden = {
            number
            for field in schema.fields
            if personal is None or field.name.lower() in {name.lower() for name in personal}
            for number in index_by_id(Schema(field))
        }
        manifests = list(read_manifest_list(self.files.new_input(snapshot.manifest_list)))
        clean = [self._manifest(manifest, schema, spec, hidden) for manifest in manifests]
        found = any(one is not None for one in clean)
        named = [new or old for new, old in zip(clean, manifests, strict=True)]
        if found and not self.dry:
            output = self.files.new_output(snapshot.manifest_list)
            number, sequence = snapshot.snapshot_id, snapshot.sequence_number or 1
            with write_manifest_list(2, output, number, None, sequence, "deflate") as writer:
                writer.add_manifests(named)
        if not self.dry:  # an earlier scrub may have been killed between its swap and its purge
            self.store.purge(self.store.key(snapshot.manifest_list))
        self._named |= {one.manifest_path for one in named}
        # Include the originals of earlier scrubs: such a scrub may have been killed before it purged them.
        self._replaced |= {path for one in (*manifests, *named) for path in (one.manifest_path, _original(one))}
        return found

    def purge(self) -> None:
        """Deletes replaced manifests."""
        for path in sorted(self._replaced - self._named):
            self.store.purge(self.store.key(path), whole=True)

    def _manifest(
        self, manifest: ManifestFile, schema: Schema, spec: PartitionSpec, hidden: set[int]
    ) -> ManifestFile | None:
        """Writes a copy of a manifest without the bounds of the `hidden` fields, next to the original.

        Returns:
            The copy, or None if the manifest has no such bounds. With `dry`, nothing is written, and the manifest
            itself is returned instead of the copy.
        """
        entries = manifest.fetch_manifest_entry(self.files)
        if not any(hidden & {*(e.data_file.lower_bounds or ()), *(e.data_file.upper_bounds or ())} for e in entries):
            return None
        if self.dry:
            return manifest
        for entry in entries:
            for kept in (entry.data_file.lower_bounds, entry.data_file.upper_bounds):
                for number in hidden & {*(kept or ())}:
                    del kept[number]
        digest = hashlib.sha256(repr(sorted(hidden)).encode()).hexdigest()[:8]
        output = self.files.new_output(f"{_original(manifest)}.{digest}{_CLEAN}")
        snapshot = manifest.added_snapshot_id or 0
        with write_manifest(2, spec, schema, output, snapshot, "deflate") as writer:
            for entry in entries:
                writer.add(entry)
        copied = writer.to_manifest_file()
        copied.sequence_number, copied.min_sequence_number = manifest.sequence_number, manifest.min_sequence_number
        return copied


def _original(manifest: ManifestFile) -> str:
    """Returns the URL of the manifest that this one is a copy of, or its own URL if it is not a copy."""
    return re.sub(rf"(\.[0-9a-f]{{8}})?{re.escape(_CLEAN)}$", "", manifest.manifest_path)
