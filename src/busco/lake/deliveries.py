"""Determines which delivered files make up a bronze table (rules D1 to D3, R2, R3)."""

from __future__ import annotations

import hashlib
import logging
import zlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import unquote

from busco.errors import BuscoError
from busco.lake import dates, layout
from busco.lake.contents import BRONZE, existing_pages, write_record
from busco.lake.formats import with_record
from busco.lake.objects import ObjectStore, canonical_json
from busco.lake.records import (
    Column,
    DeliveredFile,
    Delivery,
    Page,
    PageOfDeliveries,
    Published,
    Release,
    Version,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Contract:
    """A source table as declared in the dbt project: column names and types, grain, delivery mode (D1).

    `descriptions` is a hash of the table's and the columns' descriptions, or empty if there are none
    (`busco.lake.metadata_json.Descriptions`).
    """

    source: str
    table: str
    columns: tuple[Column, ...]
    grain: tuple[str, ...]
    delivery: str
    pii: frozenset[str] = frozenset()
    unique_id: str = ""
    descriptions: str = ""

    @property
    def name(self) -> str:
        return f"bronze.{self.table}"

    @property
    def hash(self) -> str:
        """A hash of the columns' names and types, the grain and the delivery mode, but not of descriptions."""
        content = [[(c.name, c.type) for c in self.columns], self.grain, self.delivery]
        return hashlib.sha256(canonical_json(content)).hexdigest()[:16]


# A hint for messages about a source that was not found.
OTHER_PROJECTS = "To use a source from another dbt project, add that project's folder to BUSCO_DBT_PROJECTS"

# The columns that ingest adds to each row; `_ingested_at` is in UTC.
TECHNICAL: tuple[Column, ...] = (
    Column(name="_source_file", type="VARCHAR"),
    Column(name="_source_row", type="BIGINT"),
    Column(name="_ingested_at", type="TIMESTAMP"),
)


def deliveries_of(store: ObjectStore, contract: Contract, file_name: str) -> list[Delivery]:
    """Returns the records of all deliveries under a file name."""
    return store.read_many(list(store.keys(_prefix(contract, file_name))), Delivery)


def _prefix(contract: Contract, file_name: str) -> str:
    return f"{layout.delivery_prefix(contract.source, contract.table)}{layout.file_slug(file_name)}/"


def newest_delivery(store: ObjectStore, contract: Contract, file_name: str) -> tuple[int, Delivery | None]:
    """Returns the number and the record of the newest delivery under a file name, or (0, None) if there is none."""
    numbers = [_number(key) for key in store.keys(_prefix(contract, file_name))]
    if not numbers:
        return 0, None
    newest = max(numbers)
    return newest, store.read(layout.delivery(contract.source, contract.table, file_name, newest), Delivery)


# A page ends after a key whose checksum is a multiple of this number, or at the maximum number of deliveries. So the
# boundaries depend only on the keys around them, and a new delivery changes only one page, or rarely two or three.
_BOUNDARY = 256
_LARGEST_PAGE = 1000


def read_deliveries(
    store: ObjectStore,
    contracts: Iterable[Contract],
    base: Release | None,
) -> dict[str, Published]:
    """Returns each bronze table's current set of deliveries, as a version (R2, R3).

    The version's own record and its pages are written if they don't exist yet. A table without deliveries gets an empty
    version.

    Raises:
        BuscoError: some deliveries were made under an outdated contract; the message lists the files to ingest again.
    """
    outdated: list[str] = []
    versions: dict[str, Published] = {}
    for contract in contracts:
        records = _records(store, contract)
        known = base.tables.get(contract.name) if base else None
        version = bronze_version(store, contract, records, known)
        if isinstance(version, list):
            outdated += [f"{contract.source}.{contract.table}: {name}" for name in version]
        else:
            metadata = BRONZE.metadata(contract.name, version.version, contract.descriptions)
            versions[contract.name] = version.model_copy(update={"metadata": metadata})
    if outdated:
        listed = "\n".join(f"    {line}" for line in outdated)
        raise BuscoError(
            f"these files were ingested under an outdated contract:\n{listed}",
            "ingest them again: busco ingest <files>",
        )
    return versions


def current_set(store: ObjectStore, contract: Contract) -> tuple[frozenset[str], int]:
    """Returns the possible ids of the version that consists of all current deliveries (R3), and their number.

    There are two ids, because earlier releases of the platform did not include ETags. Only a listing is made.
    """
    records = _records(store, contract)
    return _identities(contract, records), len(records)


def _records(store: ObjectStore, contract: Contract) -> dict[str, str]:
    """Returns the ETags of all of a table's delivery records, by key."""
    prefix = layout.delivery_prefix(contract.source, contract.table)
    return {key: etag for key, (etag, _) in store.sizes(prefix).items()}


def _identities(contract: Contract, records: Mapping[str, str]) -> frozenset[str]:
    keys = sorted(records)
    return frozenset((_identity(contract, [[key, records[key]] for key in keys]), _identity(contract, keys)))


def bronze_version(
    store: ObjectStore, contract: Contract, records: Mapping[str, str], known: Published | None
) -> Published | list[str]:
    """Returns a bronze table's version that consists of these delivery records, or a list of outdated files.

    A file is outdated if its newest delivery was made under a different contract. An older delivery under the current
    contract must not replace it; there can be one if the contract was changed and then changed back. Older deliveries
    under different contracts are left out. So are older deliveries with dates or times that readers don't support,
    which earlier releases of the platform accepted; each of these is logged.

    Only what has changed since `known` is read: pages whose range has changed, and the records of deliveries that are
    in none of these pages. The version's own record and its new pages are written. If records or pages of `known` have
    been deleted, they are written again.

    Args:
        records: the keys and ETags of all of the table's delivery records.
    """
    keys = sorted(records)
    identity = _identity(contract, [[key, records[key]] for key in keys])
    # Earlier releases of the platform did not include ETags. Their versions are kept until something changes.
    same = known is not None and known.version in _identities(contract, records)
    stored: dict[str, PageOfDeliveries] = {}
    if known is not None and known.inline is None:
        if same and not store.missing([known.record]):
            return known
        record = store.read(known.record, Version)
        if record is not None and record.fingerprint == contract.hash and not record.deliveries:
            stored = {page.page: page for page in record.pages}
    newest = _newest(keys)
    ranges = {_page_id(contract, part, records, newest): part for part in _ranges(keys)}
    changed = [page for page in stored if page not in ranges]
    fresh = {page: part for page, part in ranges.items() if page not in stored}
    made = _make_pages(store, contract, fresh, records, newest, existing_pages(store, contract.name, changed))
    if isinstance(made, list):
        return made
    if known is not None and known.inline is not None and same and not any(page.corrected for page in made.values()):
        return with_record(store, BRONZE, known)
    with ThreadPoolExecutor(max_workers=16) as pool:
        written = dict(zip(made, pool.map(lambda one: _write_page(store, contract, *one), made.items()), strict=True))
    pages = tuple(stored.get(page) or written[page] for page in ranges)
    version = Version(
        table=contract.name,
        version=identity,
        columns=(*contract.columns, *TECHNICAL),
        rows=sum(page.rows for page in pages),
        bytes=sum(page.bytes for page in pages),
        pages=pages,
        fingerprint=contract.hash,
        unique_id=contract.unique_id,
        personal=tuple(sorted(contract.pii)),
    )
    key = BRONZE.version(version.table, version.version)
    etag = write_record(store, key, version)
    return Published.of(version, key, BRONZE.metadata(version.table, version.version), etag)


def _ranges(keys: Sequence[str]) -> list[list[str]]:
    """Splits the sorted keys of a table's delivery records into the ranges of its pages."""
    ranges: list[list[str]] = [[]]
    for key in keys:
        ranges[-1].append(key)
        if len(ranges[-1]) == _LARGEST_PAGE or zlib.crc32(key.encode()) % _BOUNDARY == 0:
            ranges.append([])
    return [part for part in ranges if part]


def _page_id(contract: Contract, keys: Sequence[str], records: Mapping[str, str], newest: Mapping[str, str]) -> str:
    """Returns a page's id, a hash of everything that determines its content.

    The ETags of delivery records are included, because an administrator can delete a record, and its key is then used
    for the next delivery of the file.
    """
    listed = [[key, records[key], newest[_file(key)] == key] for key in keys]
    return hashlib.sha256(canonical_json([contract.hash, listed])).hexdigest()[:32]


def _make_pages(
    store: ObjectStore,
    contract: Contract,
    ranges: Mapping[str, Sequence[str]],
    records: Mapping[str, str],
    newest: Mapping[str, str],
    known: Iterable[Page],
) -> dict[str, Page] | list[str]:
    """Returns the pages of these ranges, by id, or a list of outdated files.

    Args:
        known: earlier pages under the same contract. Their deliveries are reused if the delivery records have not
            changed since; deliveries that these pages leave out may be part of the table now, so they are read again.
    """
    files = {one.record: one for page in known for one in page.deliveries if one.record_etag == records.get(one.record)}
    left_out: dict[str, str] = {}
    dated = dates.paths(contract.columns)
    further = [key for keys in ranges.values() for key in keys if key not in files]
    outdated = []
    for key, delivery in zip(further, store.read_many(further, Delivery), strict=True):
        if delivery.contract_hash == contract.hash:
            files[key] = DeliveredFile(
                record=key,
                object=delivery.object,
                rows=delivery.rows,
                bytes=delivery.bytes,
                etag=delivery.etag,
                record_etag=records[key],
                in_range=dates.in_range(dated, delivery.statistics) if dated else None,
            )
        elif newest[_file(key)] == key:
            outdated.append(delivery.file_name)
        else:
            left_out[key] = "outdated"
    if outdated:
        return sorted(outdated)
    for keys in ranges.values():
        for key in keys:
            if key in files and files[key].in_range is False and newest[_file(key)] != key:
                left_out[key] = "corrected"
                log.warning(
                    "left out table=%s file=%s delivery=%s rows=%s: it has dates or times that readers don't support; "
                    "the newest delivery of the file is number %s",
                    contract.name, unquote(_file(key).rsplit("/", 1)[1]), _number(key), files[key].rows,
                    _number(newest[_file(key)]),
                )  # fmt: skip
    return {
        page: Page(
            table=contract.name,
            deliveries=tuple(files[key] for key in keys if key not in left_out),
            outdated=tuple(key for key in keys if left_out.get(key) == "outdated"),
            corrected=tuple(key for key in keys if left_out.get(key) == "corrected"),
        )
        for page, keys in ranges.items()
    }


def _write_page(store: ObjectStore, contract: Contract, page_id: str, page: Page) -> PageOfDeliveries:
    return PageOfDeliveries(
        page=page_id,
        deliveries=len(page.deliveries),
        rows=sum(one.rows for one in page.deliveries),
        bytes=sum(one.bytes for one in page.deliveries),
        corrected=len(page.corrected),
        etag=write_record(store, BRONZE.page(contract.name, page_id), page),
    )


def _newest(keys: Iterable[str]) -> dict[str, str]:
    """Returns the key of each file's newest delivery, by the folder of the file's deliveries."""
    newest: dict[str, str] = {}
    for key in keys:
        file = _file(key)
        if file not in newest or _number(key) > _number(newest[file]):
            newest[file] = key
    return newest


def _identity(contract: Contract, deliveries: Sequence[object]) -> str:
    """Returns a version's id (R3), a hash of the table's deliveries, contract and pii columns.

    The pii columns are included because they change the version's metadata.
    """
    marks = [{"pii": sorted(contract.pii)}] if contract.pii else []
    return hashlib.sha256(canonical_json([deliveries, contract.hash, *marks])).hexdigest()[:32]


def _file(key: str) -> str:
    """Returns the folder of a file's deliveries, from `<folder>/<n>.json`."""
    return key.rsplit("/", 1)[0]


def _number(key: str) -> int:
    """Returns n from `<folder>/<n>.json`."""
    return int(key.rsplit("/", 1)[1].removesuffix(".json"))


def check_source(contracts: Sequence[Contract], table: str) -> Contract:
    """Returns the contract of a source table.

    Raises:
        BuscoError: the dbt project has no source table with that name.
    """
    for contract in contracts:
        if contract.table == table:
            return contract
    known = ", ".join(sorted(contract.table for contract in contracts))
    raise BuscoError(f"there is no source table {table}", f"use one of these: {known}. {OTHER_PROJECTS}")
