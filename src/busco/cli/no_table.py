"""Explains an error about a missing table: what the table's name refers to, or which tables exist."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from difflib import get_close_matches

from botocore.exceptions import ClientError

from busco.aws import client
from busco.errors import BuscoError
from busco.project import TABLE_KINDS, Project, table_name
from busco.settings import LAYERS, Settings

_LISTED = 20
_NAME = r"[\"'`]?([^\s\"'`.]+)[\"'`]?"
# Athena's messages (engine version 3; version 2 has no quotation marks)
_ATHENA_TABLE = re.compile(rf"\bTable '?(?:\w+\.)?{_NAME}\.{_NAME} does not exist", re.IGNORECASE)
_ATHENA_SCHEMA = re.compile(rf"\bSchema {_NAME} does not exist", re.IGNORECASE)
# DuckDB's message, which names the schema only if that schema does not exist
_DUCKDB_TABLE = re.compile(r'Table with name "?([^"\n]+?)"? does not exist')


def advice(settings: Settings, error: str, sql: str, tables: Callable[[], Iterable[str]]) -> str:
    """Returns advice for a query that names a table or database that does not exist; '' for any other error.

    Args:
        error: the message from Athena or DuckDB.
        tables: returns the names of all tables that can be queried, such as `busco_gold.fct_orders`.
    """
    if found := _ATHENA_TABLE.search(error):
        return _about(settings, found[1].lower(), found[2].lower(), tables)
    if found := _DUCKDB_TABLE.search(error):
        # if the message has no schema, look for it in the query
        database, _, table = found[1].lower().rpartition(".")
        return _about(settings, database or _written_before(sql, table) or settings.database("gold"), table, tables)
    if found := _ATHENA_SCHEMA.search(error):
        return _databases(found[1].lower(), tables)
    return ""


def _written_before(sql: str, table: str) -> str:
    """Returns the database that qualifies a table's name in a query; '' if the name is not qualified."""
    found = re.search(rf"(\w+)\"?\s*\.\s*\"?{re.escape(table)}\b", sql, re.IGNORECASE)
    return found[1].lower() if found else ""


def _about(settings: Settings, database: str, table: str, tables: Callable[[], Iterable[str]]) -> str:
    layers = {settings.database(layer): layer for layer in LAYERS}
    if database not in layers:
        # a database outside of the lake, or the schema of a project's views (`main`)
        return _in_projects(settings, database, table) or _databases(database, tables)
    return _in_projects(settings, layers[database], table) or _tables(database, table, tables)


def _in_projects(settings: Settings, schema: str, table: str) -> str:
    """Describes the node of a dbt project that an unknown table's name refers to; '' if there is no such node."""
    for project in _projects(settings):
        for uid, node in project.nodes.items():
            if node["resource_type"] not in ("model", "seed") or table_name(node).lower() != f"{schema}.{table}":
                continue
            kind = str(node["config"]["materialized"])
            is_table = kind in TABLE_KINDS
            what = "a table" if is_table else "an ephemeral model" if kind == "ephemeral" else f"a {kind}"
            what = f"{schema}.{table} is {what} of the dbt project {project.name}"
            if is_table:
                return f"{what}, but has not been published yet: busco dbt build --publish"
            reads = ", ".join(database_table(settings, one) for one in sorted(project.parents(uid)))
            instead = f"query what it reads ({reads}), or " if reads else ""
            return f"{what}: Glue and Athena show only tables, not views; {instead}materialize it as a table"
    return ""


def _projects(settings: Settings) -> Iterable[Project]:
    for one in settings.of_all_projects():
        # skip a project that has not been parsed here
        with suppress(BuscoError):
            yield Project.read(one.manifest_path)


def glue_tables(settings: Settings) -> list[str]:
    """Returns the tables that Glue shows, such as `busco_gold.fct_orders`."""
    glue = client("glue", settings)
    found = []
    for database in map(settings.database, LAYERS):
        # skip a database that does not exist or that this caller may not read
        with suppress(ClientError):
            for page in glue.get_paginator("get_tables").paginate(DatabaseName=database):
                found += [f"{database}.{table['Name']}" for table in page["TableList"]]
    return found


def database_table(settings: Settings, table: str) -> str:
    """Returns a table's name in Glue: `busco_gold.fct` for `gold.fct`."""
    layer, name = table.split(".", 1)
    return f"{settings.database(layer)}.{name}"


def _tables(database: str, table: str, tables: Callable[[], Iterable[str]]) -> str:
    known = sorted(name.split(".", 1)[1] for name in tables() if name.split(".", 1)[0] == database)
    if not known:
        return f"{database} has no tables yet"
    near = get_close_matches(table, known, 1)
    first = f"did you mean {database}.{near[0]}? " if near else ""
    more = f" and {len(known) - _LISTED} more" if len(known) > _LISTED else ""
    return f"{first}{database} has the tables {', '.join(known[:_LISTED])}{more}"


def _databases(database: str, tables: Callable[[], Iterable[str]]) -> str:
    known = sorted({name.split(".", 1)[0] for name in tables()})
    if not known:
        return f"there is no database {database}: nothing is published yet"
    return f"there is no database {database}; the databases are {', '.join(known)}"
