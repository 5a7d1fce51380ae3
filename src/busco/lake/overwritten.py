"""Finds data files that no longer match their records, and the object versions that still have the recorded content.

Data files are written once, by DuckDB's COPY, which does not support conditional writes: anyone with a role that can
write data files could overwrite them. However, records contain the ETag that S3 returned for each file, and the lake
bucket keeps old object versions for some days.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from busco.lake.objects import ObjectStore
from busco.lake.records import DataFile, Version


@dataclass(frozen=True)
class Overwritten:
    """A data file whose object no longer matches its record.

    Args:
        etag: the ETag of the current object, empty if there is none.
        newer: the ids of the object versions (including delete markers) that are newer than the recorded one, newest
            first. Deleting them restores the file with its original ETag.
        kept: the id of the object version with the recorded content, empty if the bucket no longer has it.
    """

    table: str
    file: DataFile
    etag: str
    newer: tuple[str, ...]
    kept: str


def overwritten(store: ObjectStore, tables: Iterable[Version]) -> list[Overwritten]:
    """Returns the data files that are missing from S3 or have a different ETag or size there, sorted by table and key.

    Each folder of data files is listed once. Records that were written before ETags were kept contain no ETags; for
    their files, only the size is compared.
    """
    wanted = [(version.table, file) for version in tables for file in version.files]
    folders = sorted({file.key.rpartition("/")[0] + "/" for _, file in wanted})
    with ThreadPoolExecutor(max_workers=16) as pool:
        found = {key: stored for listed in pool.map(store.sizes, folders) for key, stored in listed.items()}
    changed = [
        (table, file)
        for table, file in wanted
        if (stored := found.get(file.key)) is None or stored[1] != file.bytes or (file.etag and stored[0] != file.etag)
    ]
    return [
        _inspect(store, table, file, found.get(file.key, ("", 0))[0])
        for table, file in sorted(changed, key=lambda one: (one[0], one[1].key))
    ]


def _inspect(store: ObjectStore, table: str, file: DataFile, etag: str) -> Overwritten:
    newer: list[str] = []
    pages = store.client.get_paginator("list_object_versions").paginate(Bucket=store.bucket, Prefix=file.key)
    known = [
        (one["LastModified"], one["IsLatest"], one["VersionId"], one.get("ETag", ""), one.get("Size"))
        for page in pages
        for one in (*page.get("Versions", ()), *page.get("DeleteMarkers", ()))
        if one["Key"] == file.key
    ]
    # S3 returns a key's versions newest first, but its delete markers in a separate list.
    for _, _, number, had, size in sorted(known, key=lambda one: (one[1], one[0]), reverse=True):
        if had and size == file.bytes and had == (file.etag or had):
            return Overwritten(table, file, etag, tuple(newer), number)
        newer.append(number)
    return Overwritten(table, file, etag, tuple(newer), "")
