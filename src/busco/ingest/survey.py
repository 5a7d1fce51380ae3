"""Provides a file's rows as an SQL relation, and counts the rows and those that do not fit the contract."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import duckdb

from busco.ingest import checks, sift
from busco.ingest.files import Content, SourceFile, decompress
from busco.ingest.refused import Refused, readable
from busco.lake.types import literal, quoted


@dataclass(frozen=True)
class Survey:
    """What a file contains.

    Attributes:
        relation: a query that returns the file's rows as text, with `_source_row`.
        broken: a query (row, line, reason) for the lines that are not rows; '' if there are none.
        rows: the number of rows in the relation; `bad` of them have a value that does not fit.
        lines: the number of lines that are not rows.
    """

    relation: str
    rows: int
    bad: int
    broken: str = ""
    lines: int = 0


# The exceptions raised for a file that DuckDB can't read as it is. DuckDB's message quotes the line and may cut
# it in the middle of a character; Python can't decode such a message.
_REJECTED = (duckdb.InvalidInputException, duckdb.NotImplementedException, UnicodeDecodeError)


def survey(
    connection: duckdb.DuckDBPyConnection,
    file: SourceFile,
    content: Content,
    scratch: Path,
    tick: Callable[[], None],
) -> Survey:
    """Reads the whole file and returns what it contains.

    DuckDB reads the file directly if it can. If it rejects a line or finds the wrong number of rows (it may read a
    blank line as a header or a row), the file is first sifted into `scratch` (`sift`).

    Raises:
        Refused: the file can't be read even after sifting, or rows were lost.
    """
    found = _direct(connection, file, content, scratch, tick)
    if found is None or found.rows != content.rows:
        target = scratch / "sifted.csv"
        with readable():
            longest = sift.sift(file.path, content, target, tick)
        found = _sifted(connection, file, content, target, longest)
    check_rows(content, found.rows + found.lines)
    return found


def check_rows(content: Content, found: int) -> None:
    """Raises `Refused` unless a reader found as many rows as were counted independently."""
    if found != content.rows:
        raise Refused(
            f"it has {content.rows:,} row{'' if content.rows == 1 else 's'} but busco accounted for {found:,}, so "
            "nothing was ingested; this is a bug in busco: keep the file and report it"
        )


def _direct(
    connection: duckdb.DuckDBPyConnection,
    file: SourceFile,
    content: Content,
    scratch: Path,
    tick: Callable[[], None],
) -> Survey | None:
    """Reads the file directly with DuckDB; returns None if DuckDB rejects a line."""

    def read(path: Path, compressed: bool) -> Survey:
        columns = dict.fromkeys(content.header, "VARCHAR")
        reader = checks.reader_sql(str(path.absolute()), columns, compressed, content.longest)
        return _count(connection, file, content, checks.numbered_sql(reader))

    try:
        try:
            return read(file.path, content.compressed)
        except duckdb.IOException:
            if not content.compressed:
                raise
            # DuckDB does not support all of gzip (RFC 1952): it rejects comments, and zeros after the end
            plain = scratch / "plain.csv"
            decompress(file.path, plain, tick)
            return read(plain, False)
    except duckdb.InterruptException:
        raise
    except _REJECTED:
        return None
    except duckdb.Error as error:
        raise unreadable(error) from error


def unreadable(error: duckdb.Error | UnicodeDecodeError) -> Refused:
    """Turns DuckDB's error into a refusal.

    For most errors, only the kind of error is kept, because the error's text quotes the file's content.
    """
    kind = type(error).__name__.removesuffix("Exception").removesuffix("Error")
    if isinstance(error, duckdb.OutOfMemoryException | duckdb.IOException):
        kind = re.sub(r"\s+", " ", str(error).splitlines()[0])
    if isinstance(error, duckdb.OutOfMemoryException):
        why = f"its rows need more memory than DuckDB has; raise BUSCO_DUCKDB_MEMORY_LIMIT ({kind})"
        return Refused(why, transient=True)
    return Refused(f"DuckDB can't read it as CSV: {kind}", transient=isinstance(error, duckdb.IOException))


def _count(
    connection: duckdb.DuckDBPyConnection, file: SourceFile, content: Content, relation: str, broken: str = ""
) -> Survey:
    # each column is counted so that DuckDB reads it: it detects invalid UTF-8 only in columns that it reads
    all_read = ", ".join(f"count({quoted(name)})" for name in content.header)
    problems = checks.problems_sql(file.contract)
    sql = f"select count(*), count(*) filter (where len({problems}) > 0), {all_read} from ({relation})"
    found = connection.execute(sql).fetchone()
    assert found is not None
    lines = connection.execute(f"select count(*) from ({broken})").fetchone() if broken else None
    return Survey(relation, int(found[0]), int(found[1]), broken, int(lines[0]) if lines else 0)


def _sifted(
    connection: duckdb.DuckDBPyConnection, file: SourceFile, content: Content, target: Path, longest: int
) -> Survey:
    row, line, reason = (quoted(name) for name in sift.COLUMNS)
    columns = dict(zip(sift.COLUMNS, ("BIGINT", "VARCHAR", "VARCHAR"), strict=True))
    columns |= dict.fromkeys(content.header, "VARCHAR")
    reader = checks.reader_sql(str(target.absolute()), columns, False, longest)
    values = ", ".join(quoted(name) for name in content.header)
    relation = f"select {values}, {row} as _source_row from {reader} where {reason} is null"
    broken = f"select {row} as row, {line} as line, {reason} as reason from {reader} where {reason} is not null"
    try:
        return _count(connection, file, content, relation, broken)
    except duckdb.InterruptException:
        raise
    except (duckdb.Error, UnicodeDecodeError) as error:
        raise unreadable(error) from error


def first_problem(connection: duckdb.DuckDBPyConnection, file: SourceFile, found: Survey) -> str:
    """Describes the first value or line that does not fit, without quoting it; '' if there is none."""
    problems = checks.problems_sql(file.contract)
    sql = (
        f"select _source_row as row, p.column as what, p.reason from "
        f"(select _source_row, unnest({problems}) as p from ({found.relation}))"
    )
    if found.broken:
        sql += f" union all select row, {literal('the whole line')}, reason from ({found.broken})"
    first = connection.execute(f"select * from ({sql}) order by row limit 1").fetchone()
    return f" (row {first[0]}, {first[1]}: {first[2]})" if first else ""
