"""A file's rows as a relation, how many they are, and how many do not fit."""

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
    """What a file holds.

    Attributes:
        relation: a query of its rows as text, with `_source_row`.
        broken: a query (row, line, reason) of the lines that are no rows; '' where there are none.
        rows: how many rows the relation has, `bad` of them with a value that does not fit.
        lines: how many lines are no rows.
    """

    relation: str
    rows: int
    bad: int
    broken: str = ""
    lines: int = 0


# What DuckDB raises for a file that it can't read as it stands. Its message quotes the line and may cut it within a
# character, which Python can't decode.
_REJECTED = (duckdb.InvalidInputException, duckdb.NotImplementedException, UnicodeDecodeError)


def survey(
    connection: duckdb.DuckDBPyConnection,
    file: SourceFile,
    content: Content,
    scratch: Path,
    tick: Callable[[], None],
) -> Survey:
    """Reads all of a file once.

    DuckDB reads the file itself where it can. Where it rejects a line, or finds another number of rows than
    there are (to it, a blank line may be a header or a row), the file is sifted into `scratch` first (`sift`).

    Raises:
        Refused: it can't be read, even after that, or rows were lost.
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
    """Raises `Refused` unless a reader found as many rows as were counted without it."""
    if found != content.rows:
        raise Refused(
            f"it has {content.rows:,} row{'' if content.rows == 1 else 's'} but {found:,} would be accounted for, so "
            "nothing was ingested; this is a defect of busco: keep the file and report it"
        )


def _direct(
    connection: duckdb.DuckDBPyConnection,
    file: SourceFile,
    content: Content,
    scratch: Path,
    tick: Callable[[], None],
) -> Survey | None:
    """The file as DuckDB reads it; None where it rejects a line."""

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
            # not all that RFC 1952 allows is gzip to DuckDB: comments, and zeros behind the end, are not
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
    """DuckDB's reason as ours: of most errors the kind alone, for their text quotes what stands in the file."""
    kind = type(error).__name__.removesuffix("Exception").removesuffix("Error")
    if isinstance(error, duckdb.OutOfMemoryException | duckdb.IOException):
        kind = re.sub(r"\s+", " ", str(error).splitlines()[0])
    if isinstance(error, duckdb.OutOfMemoryException):
        return Refused(f"its rows need more memory than DuckDB has; raise BUSCO_DUCKDB_MEMORY_LIMIT ({kind})")
    return Refused(f"DuckDB can't read it as CSV: {kind}")


def _count(
    connection: duckdb.DuckDBPyConnection, file: SourceFile, content: Content, relation: str, broken: str = ""
) -> Survey:
    # each column is counted so that DuckDB reads it: text that is no UTF-8 comes to light in what it reads alone
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
    """Where a file begins not to fit, and why, without the value; '' where it has no rows at all."""
    problems = checks.problems_sql(file.contract)
    sql = (
        f"select _source_row as row, p.column as what, p.reason from "
        f"(select _source_row, unnest({problems}) as p from ({found.relation}))"
    )
    if found.broken:
        sql += f" union all select row, {literal('the whole line')}, reason from ({found.broken})"
    first = connection.execute(f"select * from ({sql}) order by row limit 1").fetchone()
    return f" (row {first[0]}, {first[1]}: {first[2]})" if first else ""
