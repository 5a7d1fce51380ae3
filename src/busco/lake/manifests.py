"""Determines a version's Iceberg manifests, with their data files and statistics (R3, R5).

This module needs dbt's environment, because `busco.lake.versions` needs pyiceberg.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from urllib.parse import unquote

from busco.errors import BuscoError
from busco.lake import bounds
from busco.lake.layout import NULL_FOLDER
from busco.lake.objects import ObjectStore, canonical_json
from busco.lake.records import DataFile, Delivery, Page, Version
from busco.lake.versions import ManifestFiles, hidden_columns


def manifests_of(store: ObjectStore, version: Version, pages: Sequence[Page]) -> list[ManifestFiles]:
    """Returns the manifests of a version that has all of its files (`contents.read_version`).

    Args:
        pages: the pages that a bronze version's record names, in the same order; empty for other versions, and for
            bronze versions that were made in format 1.
    """
    if pages:
        return [_of_page(store, version, named.page, page) for named, page in zip(version.pages, pages, strict=True)]
    if version.deliveries:
        read = partial(_delivered_files, store, version.deliveries, version)
        return [ManifestFiles(version.version, read)]
    return [ManifestFiles(version.version, lambda: [_with_partition(version, file) for file in version.files])]


def _of_page(store: ObjectStore, version: Version, page_id: str, page: Page) -> ManifestFiles:
    """Returns the manifest of a page's deliveries. Versions with the same page and bounds share it."""
    hidden = sorted(hidden_columns(version))
    bounds_of = hashlib.sha256(canonical_json(hidden)).hexdigest()[:8]
    records = [one.record for one in page.deliveries]
    return ManifestFiles(f"{page_id}-{bounds_of}", partial(_delivered_files, store, records, version))


def _with_partition(version: Version, file: DataFile) -> DataFile:
    """Returns a file with the value of each partition column, as text; NULL has no entry.

    The record has no entry for NULL either, and records of format 1 have none at all. So values that are not in the
    record are taken from the file's key, which always contains them.

    Raises:
        BuscoError: the key does not contain the value of a partition column.
    """
    unknown = [name for name in version.partition_by if name not in file.partition]
    if not unknown:
        return file
    folders = [folder.split("=", 1) for folder in file.key.split("/") if "=" in folder]
    values = {unquote(name): None if value == NULL_FOLDER else unquote(value) for name, value in folders}
    if missing := [name for name in unknown if name not in values]:
        raise BuscoError(
            f"the partition of {file.key} is unknown: neither the record of {version.table} nor the key has a value "
            f"for {', '.join(missing)}",
            "build the table again",
        )
    known = {name: value for name in unknown if (value := values[name]) is not None}
    return file.model_copy(update={"partition": file.partition | known})


def _delivered_files(store: ObjectStore, records: Sequence[str], version: Version) -> list[DataFile]:
    """Returns the deliveries' Parquet files with statistics, without bounds for the version's personal columns."""
    hidden = hidden_columns(version)
    return [
        DataFile(
            key=delivery.object,
            rows=delivery.rows,
            bytes=delivery.bytes,
            etag=delivery.etag,
            statistics=bounds.without_bounds(delivery.statistics, version.columns, hidden),
        )
        for delivery in store.read_many(list(records), Delivery)
    ]
