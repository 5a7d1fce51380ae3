"""Exports a release as a DuckDB file of views over the lake's files (`busco export duckdb`); no data is copied."""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from busco.errors import BuscoError
from busco.lake.budget import budget
from busco.lake.contents import read_versions
from busco.lake.engine import config, create_view, prepare, reach
from busco.lake.layout import split_table
from busco.lake.objects import ObjectStore
from busco.lake.records import Release, Version
from busco.lake.relations import view_queries
from busco.lake.types import literal, quoted
from busco.settings import LAYERS, Settings

# The schema with the tables that say what the file contains. No layer's database is called so: they have a prefix.
OWN = "busco"
_RELEASE = f"""
create table {OWN}.release (
    release varchar, environment varchar, published_at timestamptz, published_by varchar, lake varchar
)"""
_TABLES = f"""
create table {OWN}.tables (
    table_name varchar, version varchar, row_count bigint, bytes bigint, stale boolean, description varchar
)"""


@dataclass(frozen=True)
class Described:
    """The descriptions of a table and of its columns, from the docs of the release."""

    table: str
    columns: Mapping[str, str]


def export(
    settings: Settings,
    store: ObjectStore,
    release: Release,
    file: Path,
    progress: Callable[[int], None],
    is_live: bool = True,
) -> int:
    """Writes a DuckDB file with a view of each table of a release; returns the number of tables.

    The views have the same names as in Athena and Glue, and comments. `busco.release` and `busco.tables` name what the
    file contains. An earlier export at the same path is replaced in one step.

    Args:
        progress: called with 1 for each view.
        is_live: whether the release is live; the files of others may have been removed, which is checked.

    Raises:
        BuscoError: the file exists and is no export, it can't be written, or files of the release no longer exist.
    """
    _check_replaceable(file)
    versions = read_versions(store, release.tables.values())
    if not is_live:
        _check_complete(store, release, versions)
    described = dict(_descriptions(store, release, versions))
    part = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    try:
        with _new_database(settings, part) as connection:
            for database in map(settings.database, LAYERS):
                connection.execute(f"create schema {quoted(database)}")
            for table, version in sorted(versions.items()):
                layer, name = split_table(table)
                relation = f"{quoted(settings.database(layer))}.{quoted(name)}"
                create_view(connection, relation, view_queries(version, settings.lake_bucket, is_read=True))
                _comment(connection, relation, version, described.get(table))
                progress(1)
            _describe_itself(connection, settings, release, described)
        part.replace(file)
    except OSError as error:
        raise BuscoError(f"{file} can't be written: {error.strerror}") from error
    finally:
        for left in (part, part.with_name(f"{part.name}.wal")):
            left.unlink(missing_ok=True)
    return len(versions)


@contextlib.contextmanager
def _new_database(settings: Settings, file: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    given = budget(settings)
    try:
        connection = duckdb.connect(str(file), config=config(given))
    except duckdb.IOException as error:
        raise BuscoError(f"{file.parent} can't be written to: {error}") from error
    with connection:
        prepare(connection, given)
        reach(connection, settings)
        yield connection


def _check_replaceable(file: Path) -> None:
    if not file.exists():
        return
    refusal = BuscoError(f"{file} exists, and is no export of a release", "give another path, or delete the file")
    try:
        with duckdb.connect(str(file), read_only=True) as existing:
            existing.execute(f"select release from {OWN}.release").fetchone()
    except duckdb.Error as error:
        raise refusal from error


def _check_complete(store: ObjectStore, release: Release, versions: Mapping[str, Version]) -> None:
    """Refuses a release whose files have been removed since it was live.

    Raises:
        BuscoError: the message names the tables.
    """
    files = {file.key: table for table, version in versions.items() for file in version.files}
    gone = sorted({files[key] for key in store.missing(list(files))})
    if gone:
        names = ", ".join(gone[:5]) + (f" and {len(gone) - 5} more" if len(gone) > 5 else "")
        raise BuscoError(
            f"files of release {release.release} no longer exist, in {names}",
            "export a newer release (busco release list), or restore it: busco release repair",
        )


def _descriptions(
    store: ObjectStore, release: Release, versions: Mapping[str, Version]
) -> Iterator[tuple[str, Described]]:
    nodes: dict[str, Any] = {}
    for prefix in sorted({*release.docs_by_project().values()} - {""}):
        found = store.get(f"{prefix}manifest.json")
        if found is not None:
            manifest = json.loads(found.body)
            nodes |= manifest.get("nodes", {}) | manifest.get("sources", {})
    for table, version in versions.items():
        if node := nodes.get(version.unique_id):
            columns = {name: str(column.get("description", "")) for name, column in node.get("columns", {}).items()}
            yield table, Described(str(node.get("description", "")), columns)


def _comment(
    connection: duckdb.DuckDBPyConnection, relation: str, version: Version, described: Described | None
) -> None:
    if described is None:
        return
    if described.table:
        connection.execute(f"comment on view {relation} is {literal(described.table)}")
    for column in version.columns:
        if text := described.columns.get(column.name):
            connection.execute(f"comment on column {relation}.{quoted(column.name)} is {literal(text)}")


def _describe_itself(
    connection: duckdb.DuckDBPyConnection, settings: Settings, release: Release, described: Mapping[str, Described]
) -> None:
    connection.execute(f"create schema {OWN}")
    connection.execute(_RELEASE)
    connection.execute(_TABLES)
    values = (release.release, release.environment, release.created_at, release.who, f"s3://{settings.lake_bucket}")
    connection.execute(f"insert into {OWN}.release values (?, ?, ?, ?, ?)", values)
    for table, published in sorted(release.tables.items()):
        layer, name = split_table(table)
        text = described[table].table if table in described else ""
        full = f"{settings.database(layer)}.{name}"
        row = (full, published.version, published.rows, published.bytes, table in release.stale, text)
        connection.execute(f"insert into {OWN}.tables values (?, ?, ?, ?, ?, ?)", row)


def opening(settings: Settings) -> str:
    """Returns the statement that gives DuckDB access to the lake's files, with the credentials of the environment."""
    options = ["type s3", "provider credential_chain", f"region {literal(settings.region)}"]
    if settings.endpoint_url:
        plain = settings.endpoint_url.startswith("http://")
        address = settings.endpoint_url.partition("://")[2].rstrip("/")
        options += [f"endpoint {literal(address)}", "url_style 'path'", f"use_ssl {str(not plain).lower()}"]
    return f"create secret ({', '.join(options)})"
