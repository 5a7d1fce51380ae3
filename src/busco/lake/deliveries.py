"""Determines which delivered files make up a bronze table (rules D1 to D3, R2, R3)."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from busco.errors import BuscoError
from busco.lake import dates, layout
from busco.lake.objects import ObjectStore, canonical_json
from busco.lake.records import Column, DataFile, Delivery, Release, Version

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Contract:
    """A source table as declared in the dbt project: column names and types, grain, delivery mode (D1)."""

    source: str
    table: str
    columns: tuple[Column, ...]
    grain: tuple[str, ...]
    delivery: str
    pii: frozenset[str] = frozenset()
    unique_id: str = ""

    @property
    def name(self) -> str:
        return f"bronze.{self.table}"

    @property
    def hash(self) -> str:
        """Changes with names, types, grain and delivery mode, but not with descriptions."""
        content = [[(c.name, c.type) for c in self.columns], self.grain, self.delivery]
        return hashlib.sha256(canonical_json(content)).hexdigest()[:16]


# A hint for messages about a source that was not found.
OTHER_PROJECTS = "To use a source of another dbt project, add that project's folder to BUSCO_DBT_PROJECTS"

# The columns that ingest adds to each row; `_ingested_at` is in UTC.
TECHNICAL: tuple[Column, ...] = (
    Column(name="_source_file", type="VARCHAR"),
    Column(name="_source_row", type="BIGINT"),
    Column(name="_ingested_at", type="TIMESTAMP"),
)


def newest_delivery(store: ObjectStore, contract: Contract, file_name: str) -> tuple[int, Delivery | None]:
    """Returns the number and record of a file name's newest delivery; (0, None) if there is none."""
    prefix = f"{layout.delivery_prefix(contract.source, contract.table)}{layout.file_slug(file_name)}/"
    numbers = [_number(key) for key in store.keys(prefix)]
    if not numbers:
        return 0, None
    newest = max(numbers)
    return newest, store.read(layout.delivery(contract.source, contract.table, file_name, newest), Delivery)


def read_deliveries(store: ObjectStore, contracts: Iterable[Contract], base: Release | None) -> dict[str, Version]:
    """Returns each bronze table's current set of deliveries, as a version (R2, R3).

    A table without deliveries gets an empty version.

    Raises:
        BuscoError: some deliveries were made under an outdated contract; the message lists the files to ingest again.
    """
    outdated: list[str] = []
    versions: dict[str, Version] = {}
    for contract in contracts:
        prefix = layout.delivery_prefix(contract.source, contract.table)
        keys = sorted(store.keys(prefix))
        known = base.tables.get(contract.name) if base else None
        version = bronze_version(store, contract, keys, known)
        if isinstance(version, list):
            outdated += [f"{contract.source}.{contract.table}: {name}" for name in version]
        else:
            versions[contract.name] = version
    if outdated:
        listed = "\n".join(f"    {line}" for line in outdated)
        raise BuscoError(
            f"these files were ingested under an outdated contract:\n{listed}",
            "ingest them again: busco ingest <files>",
        )
    return versions


def bronze_version(
    store: ObjectStore, contract: Contract, keys: Sequence[str], known: Version | None
) -> Version | list[str]:
    """Returns a bronze table's version made of the delivery records `keys`, or the files that are outdated.

    A file is outdated if its newest delivery was made under a different contract. An older delivery under the current
    contract must not replace it; there can be one if the contract was changed and then changed back. Older deliveries
    under different contracts are left out. So are older deliveries with dates or times that readers don't support,
    which an earlier release of ingest accepted; these are logged.

    Records are read only if the table has changed since `known`. If it has, the records that `known` does not list are
    read. If the contract has dates or times, the records of each file's older deliveries are read as well.
    """
    if known is not None and known.version in (_identity(contract, keys), _identity(contract, keys, known.deliveries)):
        return known
    files: dict[str, DataFile] = {}
    if known is not None and known.fingerprint == contract.hash:
        files = dict(zip(known.deliveries, known.files, strict=True))
    newest: dict[str, str] = {}
    for key in keys:
        file = _file(key)
        if file not in newest or _number(key) > _number(newest[file]):
            newest[file] = key
    older = [key for key in keys if newest[_file(key)] != key]
    dated = dates.paths(contract.columns) if older else ()
    read = sorted({*(key for key in keys if key not in files), *(older if dated else ())})
    records = dict(zip(read, store.read_many(read, Delivery), strict=True))
    outdated = sorted(
        record.file_name
        for key, record in records.items()
        if record.contract_hash != contract.hash and newest[_file(key)] == key
    )
    if outdated:
        return outdated
    for key, record in records.items():
        if record.contract_hash == contract.hash:
            files[key] = DataFile(key=record.object, rows=record.rows, bytes=record.bytes, etag=record.etag)
    corrected = {
        key for key in older if key in files and dated and dates.in_range(dated, records[key].statistics) is False
    }
    for key in sorted(corrected):
        log.warning(
            "left out table=%s file=%s delivery=%s rows=%s: it has dates or times that readers don't support; "
            "the newest delivery of the file has rows=%s",
            contract.name, records[key].file_name, records[key].number, files[key].rows, files[newest[_file(key)]].rows,
        )  # fmt: skip
    used = [key for key in keys if key in files and key not in corrected]
    identity = _identity(contract, keys, used if corrected else ())
    return Version(
        table=contract.name,
        version=identity,
        columns=(*contract.columns, *TECHNICAL),
        rows=sum(files[key].rows for key in used),
        bytes=sum(files[key].bytes for key in used),
        files=tuple(files[key] for key in used),
        metadata=layout.EnvironmentLayout("prod").metadata(contract.name, identity),
        fingerprint=contract.hash,
        unique_id=contract.unique_id,
        deliveries=tuple(used),
        personal=tuple(sorted(contract.pii)),
    )


def _identity(contract: Contract, keys: Sequence[str], only: Sequence[str] = ()) -> str:
    """Returns a version's id (R3), a hash of the table's deliveries, contract and pii columns.

    The pii columns are included because they change the version's metadata. If corrections have replaced some
    deliveries, the hash also covers the remaining ones (`only`).
    """
    content = [list(keys), contract.hash, *([list(only)] if only else [])]
    marks = [{"pii": sorted(contract.pii)}] if contract.pii else []
    return hashlib.sha256(canonical_json([*content, *marks])).hexdigest()[:32]


def _file(key: str) -> str:
    """Returns the folder of a file's deliveries, from `<folder>/<n>.json`."""
    return key.rsplit("/", 1)[0]


def _number(key: str) -> int:
    """Returns n from `<folder>/<n>.json`."""
    return int(key.rsplit("/", 1)[1].removesuffix(".json"))


def check_source(contracts: Sequence[Contract], table: str) -> Contract:
    """Returns the contract of a source table.

    Raises:
        BuscoError: the dbt project has no source table of that name.
    """
    for contract in contracts:
        if contract.table == table:
            return contract
    known = ", ".join(sorted(contract.table for contract in contracts))
    raise BuscoError(f"there is no source table {table}", f"use one of these: {known}. {OTHER_PROJECTS}")
