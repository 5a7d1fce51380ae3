"""A release read by DuckDB under the names that Athena has (Q2)."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import duckdb

from busco.errors import BuscoError
from busco.lake.engine import connect
from busco.lake.layout import split_table
from busco.lake.records import Release, Version
from busco.lake.relations import select_sql
from busco.lake.types import quoted
from busco.settings import LAYERS, Settings


@dataclass(frozen=True)
class Seen:
    """Tables that are no release: what a run's models read, and what they made."""

    tables: Mapping[str, Version]


def open_release(settings: Settings, release: Release | Seen) -> duckdb.DuckDBPyConnection:
    """A connection with every table of a release: `busco_gold.fct_orders`."""
    connection = connect(settings)
    for database in map(settings.database, LAYERS):
        # one without a table is there too, as it is in Glue
        connection.execute(f"create schema {quoted(database)}")
    for table, version in sorted(release.tables.items()):
        layer, name = split_table(table)
        schema = quoted(settings.database(layer))
        connection.execute(f"create view {schema}.{quoted(name)} as {select_sql(version, settings.lake_bucket)}")
    connection.execute(f"set search_path = '{settings.database('gold')},main'")
    return connection


def query(settings: Settings, release: Release | Seen, sql: str) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """A query's column names and rows.

    Raises:
        BuscoError: it is no single question (`check_question`), or DuckDB refuses it, with DuckDB's reason.
    """
    check_question(sql)
    answer: Future[tuple[tuple[str, ...], list[tuple[Any, ...]]]] = Future()
    with open_release(settings, release) as connection:
        # in a thread of its own, for DuckDB looks for signals only between its tasks, which may be never
        asking = threading.Thread(target=_ask, args=(connection, sql, answer), daemon=True)
        try:
            asking.start()
            return answer.result()
        except duckdb.Error as error:
            raise BuscoError(f"DuckDB: {error}") from error
        except KeyboardInterrupt:
            # more than once: a query that begins later than an interruption knows nothing of it
            while asking.is_alive():
                connection.interrupt()
                asking.join(0.05)
            raise


def _ask(connection: duckdb.DuckDBPyConnection, sql: str, answer: Future[Any]) -> None:
    try:
        found = connection.execute(sql)
        names = tuple(str(column[0]) for column in found.description or ())
        answer.set_result((names, [tuple(row) for row in found.fetchall()]))
    except BaseException as error:
        answer.set_exception(error)


_ASKING = ("select", "with", "values", "show", "describe", "explain")
_ALLOWED = f"one statement that asks: {', '.join(_ASKING[:-1])} or {_ASKING[-1]}"
_TOKEN = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|--[^\n]*|/\*.*?\*/", re.DOTALL)
_EXPLAIN = re.compile(r"explain\b(\s+analyze\b)?(\s*\([^)]*\)(?=\s*\w))?", re.IGNORECASE)


def check_question(sql: str) -> None:
    """Lets nothing through that writes, in either engine: a query is one statement, and it asks.

    DuckDB says what a statement is wherever it can read it. What it can't read (some is Athena's own) is judged by
    the word that it begins with.

    Raises:
        BuscoError: no statement, several, or another one.
    """
    bare = _TOKEN.sub(lambda token: " " if token[0][0] in "-/" else "''", sql).strip().rstrip("; \n\t\r")
    if not bare:
        raise BuscoError("the query is empty", 'write for example: busco query "select 1"')
    if explained := _EXPLAIN.match(bare):
        # EXPLAIN ANALYZE runs what it explains
        check_question(bare[explained.end() :])
        return
    first = re.match(r"[\s(]*(\w*)", bare)
    begins = first.group(1) if first else ""
    try:
        statements = duckdb.extract_statements(sql)
    except duckdb.Error:
        asks = begins.lower() in _ASKING and ";" not in bare
    else:
        asks = [statement.type for statement in statements] == [duckdb.StatementType.SELECT]
    if not asks:
        more = " has several statements" if ";" in bare else f" begins with {begins!r}"
        raise BuscoError(f"busco query reads only; this{more}", f"give it {_ALLOWED}")
