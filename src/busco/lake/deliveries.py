"""Deliveries: which files a bronze table is made of (rules D1 to D3, R2, R3)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from busco.errors import BuscoError
from busco.lake import layout
from busco.lake.objects import ObjectStore, canonical_json
from busco.lake.records import Column, DataFile, Delivery, Release, Version


@dataclass(frozen=True)
class Contract:
    """What the dbt project says of a source table: names, types, grain, delivery mode (D1)."""

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
        """Changes with names, types, grain and delivery mode; not with descriptions."""
        said = [[(c.name, c.type) for c in self.columns], self.grain, self.delivery]
        return hashlib.sha256(canonical_json(said)).hexdigest()[:16]


# What ingest adds to each row; `_ingested_at` is UTC.
TECHNICAL: tuple[Column, ...] = (
    Column(name="_source_file", type="VARCHAR"),
    Column(name="_source_row", type="BIGINT"),
    Column(name="_ingested_at", type="TIMESTAMP"),
)


def newest_delivery(store: ObjectStore, contract: Contract, file_name: str) -> tuple[int, Delivery | None]:
    """The number and record of the newest delivery under a file name; (0, None) where there is none."""
    prefix = f"{layout.delivery_prefix(contract.source, contract.table)}{layout.file_slug(file_name)}/"
    numbers = [int(key.rsplit("/", 1)[1].removesuffix(".json")) for key in store.keys(prefix)]
    if not numbers:
        return 0, None
    newest = max(numbers)
    return newest, store.read(layout.delivery(contract.source, contract.table, file_name, newest), Delivery)


def read_deliveries(store: ObjectStore, contracts: Iterable[Contract], base: Release | None) -> dict[str, Version]:
    """Each bronze table's set of deliveries so far, as a version (R2, R3).

    Only records that the base release does not name are read. A table without deliveries is an empty version.

    Raises:
        BuscoError: deliveries of another contract than today's, with the files to ingest again.
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
            f"these files were ingested under another contract than today's:\n{listed}",
            "ingest them again: busco ingest <files>",
        )
    return versions


def bronze_version(
    store: ObjectStore, contract: Contract, keys: Sequence[str], known: Version | None
) -> Version | list[str]:
    """A bronze table's version over the delivery records `keys`, or the files that are outdated.

    A file delivered again under today's contract is not outdated: what stands under older contracts with the same
    file name is left out.
    """
    identity = hashlib.sha256(canonical_json([list(keys), contract.hash])).hexdigest()[:32]
    if known is not None and known.version == identity:
        return known
    files: dict[str, DataFile] = {}
    if known is not None and known.fingerprint == contract.hash:
        files = dict(zip(known.deliveries, known.files, strict=True))
    fresh = [key for key in keys if key not in files]
    records = dict(zip(fresh, store.read_many(fresh, Delivery), strict=True))
    current = {record.file_name for record in records.values() if record.contract_hash == contract.hash}
    outdated = sorted(
        {r.file_name for r in records.values() if r.contract_hash != contract.hash and r.file_name not in current}
    )
    if outdated:
        return outdated
    for key, record in records.items():
        if record.contract_hash == contract.hash:
            files[key] = DataFile(key=record.object, rows=record.rows, bytes=record.bytes)
    used = [key for key in keys if key in files]
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
    )


def check_source(contracts: Sequence[Contract], table: str) -> Contract:
    """The contract of a table.

    Raises:
        BuscoError: no source of the dbt project has that name.
    """
    for contract in contracts:
        if contract.table == table:
            return contract
    known = ", ".join(sorted(contract.table for contract in contracts))
    raise BuscoError(f"there is no source table {table}", f"the dbt project's sources have: {known}")
