"""Converts between records in the current format and records in format 1 (docs/protocol.md, "Formats").

In format 1, pins, entries and releases contained whole versions, and all versions of a table shared one Iceberg
location.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from busco.lake.contents import layout_of, read_version, write_record
from busco.lake.layout import EnvironmentLayout
from busco.lake.metadata_json import NONE, copy_metadata
from busco.lake.objects import ObjectStore
from busco.lake.records import FORMAT, Entry, Pin, Published, Release

_THREADS = 16
# Fields of a version and of its files that format 1 did not have.
_NEW_FIELDS: dict[str, Any] = {
    "format": True,
    "pages": True,
    "replaces": True,
    "files": {"__all__": {"partition", "statistics"}},
}


def upgrade(
    store: ObjectStore, environment: EnvironmentLayout, tables: Mapping[str, Published]
) -> dict[str, Published]:
    """Gives each version that was made in format 1 a record of its own, and a location of its own for its metadata.

    Versions that have both are returned unchanged. This can be killed and repeated safely.

    Raises:
        BuscoError: the metadata of one of these versions is missing.
    """
    with ThreadPoolExecutor(max_workers=_THREADS) as pool:
        return dict(zip(tables, pool.map(lambda one: _upgraded(store, environment, one), tables.values()), strict=True))


def in_own_place(environment: EnvironmentLayout, published: Published) -> Published:
    """Returns what `upgrade` would return for a version, but writes nothing.

    If `upgrade` would write nothing either, this is `published` itself. If it would write a record, the ETag is empty.
    """
    own = layout_of(environment, published)
    changes: dict[str, Any] = {}
    if published.inline is not None:
        changes = {"record": own.version(published.table, published.version), "inline": None}
    if published.metadata.startswith(f"{own.shared_location(published.table)}/"):
        changes["metadata"] = own.metadata(published.table, published.version)
    return published.model_copy(update=changes) if changes else published


def with_record(store: ObjectStore, environment: EnvironmentLayout, published: Published) -> Published:
    """Gives a version that was made in format 1 a record of its own; returns all other versions unchanged."""
    if published.inline is None:
        return published
    moved = in_own_place(environment, published)
    version = published.inline.model_copy(update={"metadata": "", "format": FORMAT})
    etag = write_record(store, moved.record, version)
    return published.model_copy(update={"record": moved.record, "etag": etag, "inline": None})


def _upgraded(store: ObjectStore, environment: EnvironmentLayout, published: Published) -> Published:
    moved = in_own_place(environment, with_record(store, environment, published))
    copy_metadata(store, published.metadata, moved.metadata, NONE)
    return moved


def encode(store: ObjectStore, record: Entry | Pin | Release, form: int) -> bytes:
    """Encodes a record for storage, in the format of the run that it belongs to."""
    if form == FORMAT:
        return record.model_copy(update={"format": FORMAT}).model_dump_json(indent=1).encode()
    data = record.model_dump(mode="json", exclude={"format", "tables", "bronze", "version"})
    if isinstance(record, Release):
        data["tables"] = {table: _whole(store, version) for table, version in record.tables.items()}
    elif isinstance(record, Pin):
        data["bronze"] = {table: _whole(store, version) for table, version in record.bronze.items()}
    else:
        data["version"] = _whole(store, record.version) if record.version else None
    return json.dumps(data, indent=1).encode()


def _whole(store: ObjectStore, published: Published) -> dict[str, Any]:
    version = read_version(store, published)
    return version.model_dump(mode="json", exclude=_NEW_FIELDS) | {"since": published.since}
