"""Reads and writes the records of versions and, for bronze tables, their pages of deliveries."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from busco.errors import BuscoError
from busco.lake.layout import EnvironmentLayout
from busco.lake.objects import AlreadyExists, ObjectStore
from busco.lake.records import DataFile, Page, PageOfDeliveries, Published, Version

# There is one bronze layer (D4): its records belong to prod, no matter which environment reads them.
BRONZE = EnvironmentLayout("prod")
_THREADS = 16


def layout_of(environment: EnvironmentLayout, published: Published) -> EnvironmentLayout:
    """Returns the layout that has the keys of a version's record and metadata: bronze tables are always prod's."""
    return BRONZE if published.table.startswith("bronze.") else environment


def read_versions(store: ObjectStore, tables: Iterable[Published]) -> dict[str, Version]:
    """Returns these tables' versions, by table, including the files of bronze versions (`read_version`)."""
    wanted = list(tables)
    with ThreadPoolExecutor(max_workers=_THREADS) as pool:
        found = list(pool.map(lambda one: read_record(store, one), wanted))
    return {one.table: _with_pages(store, one, record) for one, record in zip(wanted, found, strict=True)}


def read_version(store: ObjectStore, published: Published) -> Version:
    """Returns a version with all of its files. A bronze version's files are in the order of their delivery records.

    The version's `project` and `metadata` are those of `published`.

    Raises:
        BuscoError: one of the version's records is missing.
    """
    return _with_pages(store, published, read_record(store, published))


def read_record(store: ObjectStore, published: Published) -> Version:
    """Returns a version's own record; a bronze version's record names pages, which are not read.

    Raises:
        BuscoError: the record is missing.
    """
    if published.inline is not None:
        return published.inline
    record = store.read(published.record, Version)
    if record is None:
        raise BuscoError(
            f"the record of version {published.version} of {published.table} is missing: {store.url(published.record)}",
            "restore it: busco release repair",
        )
    return record


def complete(published: Published, record: Version, pages: Iterable[Page]) -> Version:
    """Builds the result of `read_version` from a version's own record and, for a bronze table, its pages."""
    changes: dict[str, object] = {"project": published.project, "metadata": published.metadata}
    if record.pages:
        found = [one for page in pages for one in page.deliveries]
        changes["deliveries"] = tuple(one.record for one in found)
        changes["files"] = tuple(
            DataFile(key=one.object, rows=one.rows, bytes=one.bytes, etag=one.etag) for one in found
        )
    return record.model_copy(update=changes)


def _with_pages(store: ObjectStore, published: Published, record: Version) -> Version:
    return complete(published, record, read_pages(store, record.table, record.pages))


def read_pages(store: ObjectStore, table: str, pages: Sequence[PageOfDeliveries]) -> list[Page]:
    """Returns these pages of a bronze table's deliveries, in the given order."""
    if not pages:
        return []
    return store.read_many([BRONZE.page(table, page.page) for page in pages], Page)


def existing_pages(store: ObjectStore, table: str, pages: Iterable[str]) -> list[Page]:
    """Returns the pages with these ids, leaving out any that don't exist."""
    with ThreadPoolExecutor(max_workers=_THREADS) as pool:
        found = pool.map(lambda page: store.read(BRONZE.page(table, page), Page), pages)
        return [page for page in found if page is not None]


def require_readable(
    store: ObjectStore, tables: Collection[Published], hint: str, live: Collection[Published] = ()
) -> None:
    """Rejects tables whose records, pages or Iceberg metadata do not exist, because nobody could read them (P9).

    Args:
        live: live versions of these tables, whose pages are not checked.

    Raises:
        BuscoError: objects are missing; the message lists them, and `hint` says what to do.
    """
    named = {key: one for one in tables for key in (one.record, one.metadata) if key}
    missing = store.missing(named)
    if not missing:
        named = _page_keys(store, tables)
        with suppress(BuscoError):  # the live version's record may be missing or damaged
            shared = _page_keys(store, live)
            named = {key: one for key, one in named.items() if key not in shared}
        missing = store.missing(named)
    if missing:
        listed = ", ".join(f"{named[key].table} ({store.url(key)})" for key in missing)
        raise BuscoError(
            f"the records or the Iceberg metadata of these tables do not exist: {listed}; nothing was published", hint
        )


def _page_keys(store: ObjectStore, tables: Iterable[Published]) -> dict[str, Published]:
    """Returns the keys of the pages that the records of these versions name, each with its version."""
    bronze = [one for one in tables if one.table.startswith("bronze.")]
    with ThreadPoolExecutor(max_workers=_THREADS) as pool:
        pages = list(pool.map(lambda one: _pages(store, one), bronze))
    return {BRONZE.page(one.table, page.page): one for one, named in zip(bronze, pages, strict=True) for page in named}


def _pages(store: ObjectStore, published: Published) -> Sequence[PageOfDeliveries]:
    try:
        return read_record(store, published).pages
    except ValueError as error:
        raise BuscoError(
            f"the record of version {published.version} of {published.table} is damaged: "
            f"{store.url(published.record)}; nothing was published",
            "restore it: busco release repair",
        ) from error


def contains(store: ObjectStore, whole: Published | None, part: Published) -> bool:
    """Returns whether the bronze version `whole` has all deliveries of `part`. Pages that they share are not read."""
    if whole is None:
        return part.files == 0
    if whole.version == part.version:
        return True
    one, other = read_record(store, whole), read_record(store, part)
    shared = {page.page for page in one.pages} & {page.page for page in other.pages}
    return _records(store, other, shared) <= _records(store, one, shared)


def write_record(store: ObjectStore, key: str, record: Page | Version) -> str:
    """Writes a record whose key determines its content, unless it exists, and returns the stored object's ETag.

    Raises:
        BuscoError: the existing record names different data.
    """
    try:
        return store.create(key, encoded(record))
    except AlreadyExists:
        found = store.get(key)
        if found is None:
            raise
        try:
            same = _data(store, found.parse(type(record))) == _data(store, record)
        except ValueError:
            same = False
        if not same:
            raise store.occupied(key) from None
        return found.etag


def _data(store: ObjectStore, record: Page | Version) -> list[object]:
    """Returns the data that a record names, and how readers see it.

    The other fields can depend on the release of the platform or the name of the project that wrote the record first.
    A bronze version has pages or, if it was made in format 1, its deliveries.
    """
    if isinstance(record, Page):
        named = [(one.record, one.object, one.rows, one.bytes, one.etag) for one in record.deliveries]
        return [record.table, named, record.outdated, record.corrected]
    same = [record.table, record.version, record.columns, record.partition_by, record.rows, record.bytes]
    files = [(one.key, one.rows, one.bytes) for one in record.files]
    for page in read_pages(store, record.table, record.pages):
        files += [(one.object, one.rows, one.bytes) for one in page.deliveries]
    return [*same, sorted(files)]


def encoded(record: Page | Version) -> bytes:
    """Returns a record for storage, without the fields that have their default value, except for the format."""
    content = {"format": record.format, **record.model_dump(mode="json", exclude_defaults=True)}
    return json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()


def _records(store: ObjectStore, version: Version, without: Collection[str]) -> set[str]:
    """Returns the keys of a bronze version's delivery records, except for those in the pages `without`."""
    wanted = [page for page in version.pages if page.page not in without]
    return {
        *version.deliveries,
        *(one.record for page in read_pages(store, version.table, wanted) for one in page.deliveries),
    }
