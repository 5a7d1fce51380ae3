"""A file's rows as a relation, how many they are, and how many do not fit."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import duckdb

from busco.ingest import checks, sift
from busco.ingest.files import Content, Refused, SourceFile, readable
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


def survey(
    connection: duckdb.DuckDBPyConnection,
    file: SourceFile,
    content: Content,
    scratch: Path,
    tick: Callable[[], None],
) -> Survey:
    """Reads all of a file once; where DuckDB takes offence at a line, the file is sifted into `scratch` (`sift`).

    Raises:
        Refused: it can't be read, not even so.
    """
    path = str(file.path.absolute())
    strict = checks.reader_sql(path, dict.fromkeys(content.header, "VARCHAR"), content.compressed)
    try:
        return _count(connection, file, content, checks.numbered_sql(strict))
    except duckdb.InterruptException:
        raise
    except (duckdb.InvalidInputException, duckdb.NotImplementedException):
        pass
    except duckdb.Error as error:
        raise unreadable(error) from error
    target = scratch / "sifted.csv"
    with readable():
        sift.sift(file.path, content.compressed, len(content.header), target, tick)
    try:
        return _sifted(connection, file, content, target)
    except duckdb.InterruptException:
        raise
    except duckdb.Error as error:
        raise unreadable(error) from error


def unreadable(error: duckdb.Error) -> Refused:
    """DuckDB's reason as ours: of most errors the kind alone, for their text quotes what stands in the file."""
    kind = type(error).__name__.removesuffix("Exception")
    if isinstance(error, duckdb.OutOfMemoryException | duckdb.IOException):
        kind = re.sub(r"\s+", " ", str(error).splitlines()[0])
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


def _sifted(connection: duckdb.DuckDBPyConnection, file: SourceFile, content: Content, target: Path) -> Survey:
    row, line, reason = (quoted(name) for name in sift.COLUMNS)
    columns = dict(zip(sift.COLUMNS, ("BIGINT", "VARCHAR", "VARCHAR"), strict=True))
    columns |= dict.fromkeys(content.header, "VARCHAR")
    reader = checks.reader_sql(str(target.absolute()), columns, False, longest=sift.MAX_SIFTED_LINE)
    values = ", ".join(quoted(name) for name in content.header)
    relation = f"select {values}, {row} as _source_row from {reader} where {reason} is null"
    broken = f"select {row} as row, {line} as line, {reason} as reason from {reader} where {reason} is not null"
    return _count(connection, file, content, relation, broken)


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
