"""Loads one file as one delivery: the Parquet object first, the record last, so that nothing is ever half-ingested."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import duckdb

from busco.ingest import checks
from busco.ingest.files import Content, Limits, SourceFile, examine, state
from busco.ingest.landing import LandedObject
from busco.ingest.refused import Refused
from busco.ingest.survey import Survey, check_rows, first_problem, survey, unreadable
from busco.lake import layout, types
from busco.lake.bounds import without_bounds
from busco.lake.deliveries import TECHNICAL, Contract, deliveries_of, newest_delivery
from busco.lake.objects import AlreadyExists, ObjectStore
from busco.lake.records import Delivery, utc_now
from busco.lake.types import literal

_CHANGED = "it changed while it was being read"
# the maximum number of characters shown of a quarantined value
_SHOWN = 100


@dataclass(frozen=True)
class Loaded:
    """The result for a file: rows read, written and quarantined; `known` means ingested before.

    `transient` means that the same content may be accepted later (`Refused`).
    """

    file: SourceFile | LandedObject
    outcome: Literal["ingested", "known", "refused"]
    rows: int = 0
    written: int = 0
    quarantined: int = 0
    reason: str = ""
    transient: bool = False
    examples: tuple[str, ...] = ()


def load(
    connection: duckdb.DuckDBPyConnection,
    store: ObjectStore,
    file: SourceFile | LandedObject,
    scratch: Path,
    limits: Limits,
    progress: Callable[[int], None],
) -> Loaded:
    """Ingests a file (D1 to D3). The file is read three times; memory is bounded by DuckDB's limit and one row.

    An object in the landing bucket is fetched once.

    If something is wrong with the file, it is refused; if S3 fails, an exception is raised.

    Args:
        connection: a DuckDB connection with access to the lake's S3, used only for this call.
        scratch: an existing folder for a file that has to be rewritten before DuckDB can read it.
        progress: called with the number of bytes processed since the last call; each byte counts three times, because
            the file is examined, checked and written.
    """
    before: tuple[int, ...] = ()
    try:
        with file.opened(scratch) as source, TemporaryDirectory(prefix="sifted-", dir=scratch) as folder:
            before = state(source.path)
            try:
                return _load(connection, store, file, source, before, Path(folder), limits, progress)
            except Refused as error:
                # DuckDB's messages may contain the path of the open file
                named = str(error).replace(str(source.path), file.label.rpartition("/")[2])
                raise Refused(named, error.transient) from error
    except Refused as error:
        reason = _CHANGED if before and file.has_changed(before) else str(error)
        return Loaded(file, "refused", reason=reason, transient=error.transient)


def ingested_before(store: ObjectStore, file: LandedObject) -> Loaded | None:
    """Returns the result for an object if one of its deliveries shows that it need not be read; otherwise None."""
    made = file.delivery_in(deliveries_of(store, file.contract, file.name))
    return _known(file, made) if made else None


def _known(file: SourceFile | LandedObject, newest: Delivery) -> Loaded:
    return Loaded(file, "known", newest.rows + newest.quarantined, newest.rows, newest.quarantined)


def _load(
    connection: duckdb.DuckDBPyConnection,
    store: ObjectStore,
    named: SourceFile | LandedObject,
    file: SourceFile,
    before: tuple[int, ...],
    scratch: Path,
    limits: Limits,
    progress: Callable[[int], None],
) -> Loaded:
    """
    Args:
        named: the file as it was given, for the records and the report.
        file: the same file, opened.
        before: the file's state when it was opened.
    """
    size = before[0]
    content = examine(file, limits, progress)
    found: Survey | None = None
    while True:
        number, newest = newest_delivery(store, file.contract, file.name)
        if newest and (newest.content_hash, newest.contract_hash) == (content.sha256, file.contract.hash):
            progress(2 * size)
            return _known(named, newest)
        if found is None:
            found = survey(connection, file, content, scratch, lambda: progress(0))
            progress(size)
            _refuse_empty(connection, file, found)
        earliest = newest.ingested_at + timedelta(microseconds=1) if newest else None
        now = utc_now() if earliest is None else max(utc_now(), earliest)
        delivery = _write(
            connection, store, file, content, found, number + 1, now, named.origin | {"source_version": file.version}
        )
        examples = _quarantine(connection, store, file, content, found, delivery.attempt)
        if named.has_changed(before):
            raise Refused(_CHANGED)
        progress(size)
        try:
            store.create(layout.delivery(file.contract.source, file.contract.table, file.name, number + 1), delivery)
        except AlreadyExists:
            progress(-size)
            continue
        rows = delivery.rows + delivery.quarantined
        return Loaded(named, "ingested", rows, delivery.rows, delivery.quarantined, examples=examples)


def _refuse_empty(connection: duckdb.DuckDBPyConnection, file: SourceFile, found: Survey) -> None:
    """Refuses a full delivery without rows, which would be treated as no delivery at all.

    Raises:
        Refused: no row of a full delivery would be written.
    """
    if file.contract.delivery == "full" and found.rows == found.bad:
        first = first_problem(connection, file, found)
        raise Refused(
            f"no row fits the contract{first}: "
            "a full delivery without rows would leave the previous file's rows in place"
        )


def _write(
    connection: duckdb.DuckDBPyConnection,
    store: ObjectStore,
    file: SourceFile,
    content: Content,
    found: Survey,
    number: int,
    ingested_at: datetime,
    origin: dict[str, str],
) -> Delivery:
    contract, attempt = file.contract, layout.new_id()[:16]
    key = layout.bronze_object(contract.source, contract.table, content.sha256, attempt)
    moment = ingested_at.strftime("%Y-%m-%d %H:%M:%S.%f")
    own = f"{literal(file.name)} as _source_file, _source_row, timestamp {literal(moment)} as _ingested_at"
    columns = (*contract.columns, *TECHNICAL)
    fields = types.field_ids_sql([(c.name, types.parse(c.type, c.name)) for c in columns])
    where = f"where len({checks.problems_sql(contract)}) = 0" if found.bad else ""
    written = _copy(
        connection,
        file,
        f"copy (select {checks.typed_sql(contract)}, {own} from ({found.relation}) {where}) "
        f"to {literal(store.url(key))} (format parquet, compression zstd, return_stats, field_ids {fields})",
    )
    _, count, bytes_written, _, statistics, *_ = written[0]
    check_rows(content, int(count) + found.bad + found.lines)
    return Delivery(
        table=contract.name,
        file_name=file.name,
        number=number,
        object=key,
        attempt=attempt,
        content_hash=content.sha256,
        contract_hash=contract.hash,
        columns=columns,
        rows=int(count),
        quarantined=found.bad + found.lines,
        bytes=int(bytes_written),
        etag=store.etags(key, {key: int(bytes_written)})[key],
        statistics=without_bounds(statistics, columns, contract.pii),
        ingested_at=ingested_at,
        **origin,
    )


def _quarantine(
    connection: duckdb.DuckDBPyConnection,
    store: ObjectStore,
    file: SourceFile,
    content: Content,
    found: Survey,
    attempt: str,
) -> tuple[str, ...]:
    """Quarantines the values and lines that do not fit the contract; returns the first of them for the report."""
    contract = file.contract
    if not found.bad and not found.lines:
        return ()
    url = store.url(layout.quarantine(contract.source, contract.table, file.name, attempt))
    named = literal(file.name)
    sql = (
        f"select {named} as file, _source_row as row, p.column, p.value, p.reason "
        f"from (select _source_row, unnest({checks.problems_sql(contract)}) as p from ({found.relation}))"
    )
    if found.broken:
        sql += (
            f" union all by name select {named} as file, row, '' as column, line as value, reason from ({found.broken})"
        )
    _copy(connection, file, f"copy ({sql}) to {literal(url)} (format parquet, compression zstd)")
    written = connection.execute(f"select count(distinct row) from read_parquet({literal(url)})").fetchone()
    assert written is not None
    check_rows(content, found.rows - found.bad + int(written[0]))
    return _examples(connection, url, contract)


def _copy(connection: duckdb.DuckDBPyConnection, file: SourceFile, sql: str) -> list[Any]:
    """Runs a COPY from the file to S3.

    Raises:
        Refused: the file has changed since the survey, or DuckDB can't read it.
        duckdb.Error: S3 failed.
    """
    try:
        return connection.execute(sql).fetchall()
    except duckdb.InterruptException:
        raise
    except (duckdb.ConversionException, duckdb.InvalidInputException, UnicodeDecodeError) as error:
        raise Refused(_CHANGED) from error
    except (duckdb.HTTPException, duckdb.IOException) as error:
        if checks.escaped(str(file.path.absolute())) not in str(error):
            raise
        # nobody can change the copy of an object of the landing bucket: there, it is an error of the machine
        raise Refused(_CHANGED, transient=True) from error
    except duckdb.Error as error:
        raise unreadable(error) from error


def _examples(connection: duckdb.DuckDBPyConnection, url: str, contract: Contract) -> tuple[str, ...]:
    """Returns the first quarantined values for the report.

    Whole lines are hidden, as are all values of a table with pii columns: if a row lacks a value, the values after it
    are in the wrong columns.
    """
    found = connection.execute(
        f'select row, "column", value, reason from read_parquet({literal(url)}) order by row limit 5'
    ).fetchall()
    lines = []
    for row, column, value, reason in found:
        hidden = not column or bool(contract.pii)
        long = value is not None and len(value) > _SHOWN
        shown = "•••" if hidden else repr(value[:_SHOWN]) + "…" if long else repr(value)
        lines.append(f"row {row}, {column or 'the whole line'}: {shown} — {reason}")
    return tuple(lines)
