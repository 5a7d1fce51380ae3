"""A release read by DuckDB under the names that Athena has (Q2)."""

from __future__ import annotations

from typing import Any

import duckdb

from busco.errors import BuscoError
from busco.lake.engine import connect
from busco.lake.layout import split_table
from busco.lake.records import Release
from busco.lake.relations import select_sql
from busco.lake.types import quoted
from busco.settings import Settings


def open_release(settings: Settings, release: Release) -> duckdb.DuckDBPyConnection:
    """A connection with every table of a release: `busco_gold.fct_orders`."""
    connection = connect(settings)
    for table, version in sorted(release.tables.items()):
        layer, name = split_table(table)
        schema = quoted(settings.database(layer))
        connection.execute(f"create schema if not exists {schema}")
        connection.execute(f"create view {schema}.{quoted(name)} as {select_sql(version, settings.lake_bucket)}")
    connection.execute(f"set search_path = '{settings.database('gold')},main'")
    return connection


def query(settings: Settings, release: Release, sql: str) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """A query's column names and rows.

    Raises:
        BuscoError: DuckDB refuses it, with DuckDB's reason.
    """
    with open_release(settings, release) as connection:
        try:
            found = connection.execute(sql)
            names = tuple(str(column[0]) for column in found.description or ())
            return names, [tuple(row) for row in found.fetchall()]
        except duckdb.Error as error:
            raise BuscoError(f"DuckDB: {error}") from error
