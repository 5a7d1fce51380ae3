"""One file into one delivery: the Parquet object first, the record last, so that nothing is ever half-ingested."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

import duckdb

from busco.ingest import checks
from busco.ingest.files import Content, Refused, SourceFile, examine
from busco.lake import layout, types
from busco.lake.deliveries import TECHNICAL, Contract, newest_delivery
from busco.lake.objects import AlreadyExists, ObjectStore
from busco.lake.records import Delivery, utc_now
from busco.lake.types import literal


@dataclass(frozen=True)
class Loaded:
    """What became of a file: rows read, written, quarantined; `known` where it had been ingested before."""

    file: SourceFile
    outcome: Literal["ingested", "known", "refused"]
    rows: int = 0
    written: int = 0
    quarantined: int = 0
    reason: str = ""
    examples: tuple[str, ...] = ()


def load(
    connection: duckdb.DuckDBPyConnection,
    store: ObjectStore,
    file: SourceFile,
    progress: Callable[[int], None],
) -> Loaded:
    """Ingests a file (D1 to D3). Memory stays bounded by DuckDB's: the file is streamed, twice.

    Args:
        connection: DuckDB with the lake's S3, for this call alone.
        progress: told of bytes done; a file counts three times its size (examined, checked, written).
    """
    size = file.path.stat().st_size
    try:
        content = examine(file, progress)
        while True:
            number, newest = newest_delivery(store, file.contract, file.name)
            if newest and (newest.content_hash, newest.contract_hash) == (content.sha256, file.contract.hash):
                progress(2 * size)
                return Loaded(file, "known", newest.rows + newest.quarantined, newest.rows, newest.quarantined)
            earliest = newest.ingested_at + timedelta(microseconds=1) if newest else None
            now = utc_now() if earliest is None else max(utc_now(), earliest)
            delivery, examples = _write(connection, store, file, content, number + 1, now, progress)
            key = layout.delivery(file.contract.source, file.contract.table, file.name, delivery.number)
            try:
                store.create(key, delivery)
            except AlreadyExists:
                progress(-2 * size)
                continue
            rows = delivery.rows + delivery.quarantined
            return Loaded(file, "ingested", rows, delivery.rows, delivery.quarantined, examples=examples)
    except Refused as error:
        return Loaded(file, "refused", reason=str(error))


def _write(
    connection: duckdb.DuckDBPyConnection,
    store: ObjectStore,
    file: SourceFile,
    content: Content,
    number: int,
    ingested_at: datetime,
    progress: Callable[[int], None],
) -> tuple[Delivery, tuple[str, ...]]:
    contract, size = file.contract, file.path.stat().st_size
    attempt = layout.new_id()[:16]
    problems = checks.problems_sql(contract)
    numbered, rows, bad = _survey(connection, file, content, problems)
    broken = _one(connection, "select count(*) from broken_lines")[0]
    progress(size)
    key = layout.bronze_object(contract.source, contract.table, content.sha256, attempt)
    moment = ingested_at.strftime("%Y-%m-%d %H:%M:%S.%f")
    own = f"{literal(file.name)} as _source_file, _source_row, timestamp {literal(moment)} as _ingested_at"
    columns = (*contract.columns, *TECHNICAL)
    fields = types.field_ids_sql([(c.name, types.parse(c.type, c.name)) for c in columns])
    where = f"where len({problems}) = 0" if bad else ""
    written = connection.execute(
        f"copy (select {checks.typed_sql(contract)}, {own} from ({numbered}) {where}) "
        f"to {literal(store.url(key))} (format parquet, compression zstd, return_stats, field_ids {fields})"
    ).fetchall()
    examples: tuple[str, ...] = ()
    if bad or broken:
        target = layout.quarantine(contract.source, contract.table, file.name, attempt)
        connection.execute(
            f"copy (select {literal(file.name)} as file, _source_row as row, p.column, p.value, p.reason "
            f"from (select _source_row, unnest({problems}) as p from ({numbered})) "
            f"union all by name select {literal(file.name)} as file, row, '' as column, line as value, reason "
            f"from broken_lines) to {literal(store.url(target))} (format parquet, compression zstd)"
        )
        examples = _examples(connection, store.url(target), contract)
    progress(size)
    _, count, bytes_written, _, statistics, *_ = written[0]
    delivery = Delivery(
        table=contract.name,
        file_name=file.name,
        number=number,
        object=key,
        attempt=attempt,
        content_hash=content.sha256,
        contract_hash=contract.hash,
        columns=columns,
        rows=int(count),
        quarantined=int(bad) + int(broken),
        bytes=int(bytes_written),
        statistics=statistics,
        ingested_at=ingested_at,
        source=str(file.path.name),
    )
    if int(count) + int(bad) != int(rows):
        raise Refused(f"{rows} rows were read first, then {int(count) + int(bad)}: it changed while it was read")
    return delivery, examples


def _survey(
    connection: duckdb.DuckDBPyConnection, file: SourceFile, content: Content, problems: str
) -> tuple[str, int, int]:
    """The relation of the file's numbered rows, how many there are, and how many do not fit.

    Lines that are no rows at all go to the table `broken_lines`.

    Raises:
        Refused: DuckDB can't read the file at all.
    """

    def count(numbered: str) -> tuple[str, int, int]:
        sql = f"select count(*), count(*) filter (where len({problems}) > 0) from ({numbered})"
        rows, bad = _one(connection, sql)
        return numbered, rows, bad

    path = str(file.path)
    strict = checks.reader_sql(path, content.header, content.compressed)
    connection.execute("create or replace temp table broken_lines (row bigint, line varchar, reason varchar)")
    try:
        return count(checks.numbered_sql(strict))
    except duckdb.InvalidInputException:
        pass
    for table in ("reject_errors", "reject_scans"):
        connection.execute(f"drop table if exists {table}")
    keeping = checks.reader_sql(path, content.header, content.compressed, "store_rejects = true, rejects_limit = 0")
    try:
        connection.execute(f"select count(columns(*)) from {keeping}").fetchall()
    except duckdb.Error as error:
        raise Refused(f"not readable as CSV: {_first_line(error)}") from error
    # DuckDB counts lines from the header's on, 1-based; a line may have several errors
    connection.execute(
        "insert into broken_lines select line - 1, any_value(csv_line), "
        "string_agg(distinct lower(error_type::varchar), ', ') from reject_errors group by line"
    )
    # the rank among the rows that were read, from which on rows stand `shift` further down in the file
    connection.execute(
        "create or replace temp table shifts as select row - n + 1 as after, max(n) as shift from "
        "(select row, row_number() over (order by row) as n from broken_lines) group by all"
    )
    skipping = checks.reader_sql(path, content.header, content.compressed, "ignore_errors = true")
    return count(checks.numbered_sql(skipping, "shifts"))


def _examples(connection: duckdb.DuckDBPyConnection, url: str, contract: Contract) -> tuple[str, ...]:
    """The first quarantined values for the report; values of pii columns, and whole lines, are hidden."""
    found = connection.execute(
        f'select row, "column", value, reason from read_parquet({literal(url)}) order by row limit 5'
    ).fetchall()
    lines = []
    for row, column, value, reason in found:
        hidden = not column or column in contract.pii
        shown = "•••" if hidden else repr(value)
        lines.append(f"row {row}, {column or 'the whole line'}: {shown} — {reason}")
    return tuple(lines)


def _one(connection: duckdb.DuckDBPyConnection, sql: str) -> tuple[int, ...]:
    row = connection.execute(sql).fetchone()
    assert row is not None
    return tuple(int(value) for value in row)


def _first_line(error: Exception) -> str:
    return re.sub(r"\s+", " ", str(error).splitlines()[0])
