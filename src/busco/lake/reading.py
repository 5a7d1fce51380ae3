"""Queries a release in DuckDB, with the same table names as in Athena (Q2)."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import duckdb

from busco.errors import BuscoError
from busco.lake.contents import read_versions
from busco.lake.engine import connect, create_view
from busco.lake.layout import split_table
from busco.lake.objects import ObjectStore
from busco.lake.records import Published, Release, Version
from busco.lake.relations import view_queries
from busco.lake.types import quoted
from busco.processes import result_of
from busco.settings import LAYERS, Settings


@dataclass(frozen=True)
class Seen:
    """A set of tables that is not a release: the tables that a run's models read, and those that the models built."""

    tables: Mapping[str, Published]


def open_versions(settings: Settings, versions: Mapping[str, Version], sql: str) -> duckdb.DuckDBPyConnection:
    """Opens a connection that has a view of every table, for example `busco_gold.fct_orders`.

    Args:
        sql: the query that the connection is for. The first file of each table whose name occurs in it is opened, so
            that DuckDB has the table's statistics. No files of other tables are opened.
    """
    named = sql.lower()
    connection = connect(settings)
    for database in map(settings.database, LAYERS):
        # Databases without tables are created too, because Glue also has them.
        connection.execute(f"create schema {quoted(database)}")
    for table, version in sorted(versions.items()):
        layer, name = split_table(table)
        # Searching the query for the name can't miss a table, but parsing it could (Athena's syntax, EXPLAIN).
        queries = view_queries(version, settings.lake_bucket, is_read=name.lower() in named)
        create_view(connection, f"{quoted(settings.database(layer))}.{quoted(name)}", queries)
    connection.execute(f"set search_path = '{settings.database('gold')},main'")
    return connection


def query(
    settings: Settings, store: ObjectStore, release: Release | Seen, sql: str
) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """Runs a query and returns its column names and rows.

    Raises:
        BuscoError: the query is not a single read-only statement (`check_question`), or DuckDB rejects it (the message
            contains DuckDB's reason).
    """
    check_question(sql)
    versions = read_versions(store, release.tables.values())
    answer: Future[tuple[tuple[str, ...], list[tuple[Any, ...]]]] = Future()
    with open_versions(settings, versions, sql) as connection:
        # Run the query in its own thread: DuckDB checks for signals only between its tasks, so it may never notice one.
        worker = threading.Thread(target=_execute, args=(connection, sql, answer), daemon=True)
        try:
            worker.start()
            return result_of(answer)
        except duckdb.Error as error:
            raise BuscoError(f"DuckDB: {error}") from error
        except BaseException:
            # Interrupt repeatedly: an interrupt has no effect on a query that starts after it.
            while worker.is_alive():
                connection.interrupt()
                worker.join(0.05)
            raise


def _execute(connection: duckdb.DuckDBPyConnection, sql: str, answer: Future[Any]) -> None:
    try:
        found = connection.execute(sql)
        names = tuple(str(column[0]) for column in found.description or ())
        answer.set_result((names, [tuple(row) for row in found.fetchall()]))
    except BaseException as error:
        answer.set_exception(error)


_READING = ("select", "with", "values", "show", "describe", "explain")
_ALLOWED = f"a single read-only statement: {', '.join(_READING[:-1])} or {_READING[-1]}"
_TOKEN = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|--[^\n]*|/\*.*?\*/", re.DOTALL)
_EXPLAIN = re.compile(r"explain\b(\s+analyze\b)?(\s*\([^)]*\)(?=\s*\w))?", re.IGNORECASE)


def check_question(sql: str) -> None:
    """Rejects everything but a single read-only statement, whether DuckDB or Athena will run it.

    If DuckDB can parse the query, DuckDB also determines the statement's type. Otherwise (some syntax is specific to
    Athena), the first word decides.

    Raises:
        BuscoError: there is no statement, more than one, or one that is not read-only.
    """
    bare = _TOKEN.sub(lambda token: " " if token[0][0] in "-/" else "''", sql).strip().rstrip("; \n\t\r")
    if not bare:
        raise BuscoError("the query is empty", 'write a query, for example: busco query "select 1"')
    if explained := _EXPLAIN.match(bare):
        # EXPLAIN ANALYZE runs the statement that it explains.
        check_question(bare[explained.end() :])
        return
    first = re.match(r"[\s(]*(\w*)", bare)
    begins = first.group(1) if first else ""
    try:
        statements = duckdb.extract_statements(sql)
    except duckdb.Error:
        reads = begins.lower() in _READING and ";" not in bare
    else:
        reads = [statement.type for statement in statements] == [duckdb.StatementType.SELECT]
    if not reads:
        wrong = "more than one statement" if ";" in bare else f"a statement that begins with {begins!r}"
        raise BuscoError(f"busco query can't run {wrong}", f"use {_ALLOWED}")
