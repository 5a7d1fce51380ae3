"""Data files that are not any more what their records say: which they are, and where their content still is.

Data files are written once, by DuckDB's COPY, which knows no condition: whoever has a role that writes them could write
over them. The record has the ETag that S3 gave the file, and the lake bucket keeps old versions for some days.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from busco.lake.objects import ObjectStore
from busco.lake.records import DataFile, Version


@dataclass(frozen=True)
class Overwritten:
    """A data file whose object is not the recorded one.

    Args:
        etag: what S3 has there now, empty where it has nothing.
        newer: the ids of the object versions (delete markers among them) over the recorded one, newest first: deleting
            these brings the file back, under its own ETag.
        kept: the id of the object version with the recorded content, empty where the bucket has none any more.
    """

    table: str
    file: DataFile
    etag: str
    newer: tuple[str, ...]
    kept: str


def overwritten(store: ObjectStore, tables: Iterable[Version]) -> list[Overwritten]:
    """The data files of these versions that S3 has with another ETag or size, or not at all; by table and key.

    It lists each folder of data files once. Of a file whose record has no ETag, written before they were kept, the size
    is compared.
    """
    wanted = [(version.table, file) for version in tables for file in version.files]
    folders = sorted({file.key.rpartition("/")[0] + "/" for _, file in wanted})
    with ThreadPoolExecutor(max_workers=16) as pool:
        found = {key: said for listed in pool.map(store.sizes, folders) for key, said in listed.items()}
    changed = [
        (table, file)
        for table, file in wanted
        if (said := found.get(file.key)) is None or said[1] != file.bytes or (file.etag and said[0] != file.etag)
    ]
    return [
        _told(store, table, file, found.get(file.key, ("", 0))[0])
        for table, file in sorted(changed, key=lambda one: (one[0], one[1].key))
    ]


def _told(store: ObjectStore, table: str, file: DataFile, etag: str) -> Overwritten:
    newer: list[str] = []
    pages = store.client.get_paginator("list_object_versions").paginate(Bucket=store.bucket, Prefix=file.key)
    known = [
        (one["LastModified"], one["IsLatest"], one["VersionId"], one.get("ETag", ""), one.get("Size"))
        for page in pages
        for one in (*page.get("Versions", ()), *page.get("DeleteMarkers", ()))
        if one["Key"] == file.key
    ]
    # S3 gives a key's versions newest first, and its delete markers in a list of their own
    for _, _, number, had, size in sorted(known, key=lambda one: (one[1], one[0]), reverse=True):
        if had and size == file.bytes and had == (file.etag or had):
            return Overwritten(table, file, etag, tuple(newer), number)
        newer.append(number)
    return Overwritten(table, file, etag, tuple(newer), "")
