"""Runs queries, optionally with parameters (`?`), in the local Athena, and formats results as Athena does.

This module replaces the MiniStack function that runs a query in DuckDB, because that function keeps neither the types
of nested values nor the precision of decimals. To check the query and find its tables, it calls the functions that
`busco.embedded.athena_iceberg` installs in MiniStack.
"""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

import duckdb

from busco.embedded import ministack_contract
from busco.embedded.athena_catalog import result_of
from busco.embedded.athena_checks import check_statement, explained
from busco.embedded.athena_values import column_type, text

# The MiniStack functions that this patch wraps, replaces or calls, with the parameters that they had when it was
# written.
EXPECTED = {
    "services.athena._start_query_execution": ["data"],
    "services.athena._run_duckdb": ["query", "database", "catalog"],
    "services.athena._rewrite_data_paths": ["query", "database", "catalog"],
    "services.athena._sql_tokens": ["sql"],
    "services.athena._Cursor": ["text"],
    "services.athena._attach_s3_table_buckets": ["conn", "buckets"],
    "core.responses.error_response_json": ["code", "message", "status", "extra", "message_key", "content_type"],
}

# A parameter's value is a literal (Athena User Guide, "Use parameterized queries"), never an expression.
_STRING = r"'(?:[^']|'')*'"
_LITERAL = re.compile(
    rf"{_STRING}|(?:date|time|timestamp|decimal)\s*{_STRING}|[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?|true|false|null",
    re.IGNORECASE,
)

_parameters: ContextVar[tuple[str, ...]] = ContextVar("_parameters", default=())


def install() -> None:
    """Patches `ministack.services.athena` in this process. Call this before `athena_iceberg.install`.

    Raises:
        RuntimeError: the installed MiniStack is not the version that this patch was written for.
    """
    from ministack.core.responses import error_response_json
    from ministack.services import athena

    ministack_contract.check(__name__, EXPECTED, "tests/integration/test_athena_clients.py")
    original = athena._start_query_execution

    def start(data: dict[str, Any]) -> Any:
        given = tuple(str(one) for one in data.get("ExecutionParameters") or ())
        if wrong := refused_parameter(given):
            return error_response_json("InvalidRequestException", wrong, 400)
        # The call below creates the task that runs the query, and the task starts with a copy of the context.
        token = _parameters.set(given)
        try:
            return original(data)
        finally:
            _parameters.reset(token)

    async def run(query: str, database: str | None, catalog: str | None = None) -> dict[str, Any]:
        tokens = list(athena._sql_tokens(query))
        check_statement(tokens)
        # awswrangler's describe_table puts the database's name in backticks
        database = (database or "default").strip("`")
        if listed := result_of(query, database):
            return listed
        plan_of = explained(query, tokens)
        rewritten, buckets, folders = await athena._rewrite_data_paths(plan_of or query, database, catalog)

        def execute() -> dict[str, Any]:
            try:
                with duckdb.connect(":memory:") as connection:
                    with suppress(duckdb.Error):
                        # as MiniStack does, for CSV files in DuckDB 2.0
                        connection.execute("SET disabled_optimizers = 'type_pushdown'")
                    # Athena's sessions are in UTC.
                    connection.execute("SET TimeZone = 'UTC'")
                    athena._attach_s3_table_buckets(connection, buckets)
                    if plan_of:
                        return _plan(connection, rewritten, _parameters.get())
                    return _result(connection, rewritten, _parameters.get())
            finally:
                for folder in folders:
                    shutil.rmtree(folder, ignore_errors=True)

        return await asyncio.to_thread(execute)

    athena._start_query_execution = start
    athena._run_duckdb = run


def refused_parameter(parameters: Sequence[str]) -> str:
    """Returns why the values of a query's parameters are refused; '' if they are accepted."""
    for number, given in enumerate(parameters, 1):
        if not _LITERAL.fullmatch(given.strip()):
            return (
                f"ExecutionParameters: value {number} is not an SQL literal; write a string in single quotes ('paid'), "
                "and a date as DATE '2018-01-01'"
            )
    return ""


def _plan(connection: duckdb.DuckDBPyConnection, sql: str, parameters: Sequence[str]) -> dict[str, Any]:
    found = _result(connection, f"EXPLAIN {sql}", parameters)
    lines = [[line] for row in found["rows"] for line in str(row[1]).splitlines()]
    return {"columns": ["Query Plan"], "column_types": ["varchar"], "rows": lines}


def _result(connection: duckdb.DuckDBPyConnection, sql: str, parameters: Sequence[str]) -> dict[str, Any]:
    names = {name for one in connection.extract_statements(sql) for name in one.named_parameters}
    if not all(name.isdecimal() for name in names):
        raise ValueError("INVALID_PARAMETER_USAGE: parameters are written as ?, without a name")
    if len(names) != len(parameters):
        counts = f"expected {len(names)} but found {len(parameters)}"
        raise ValueError(f"INVALID_PARAMETER_USAGE: Incorrect number of parameters: {counts}")
    # DuckDB binds the values, so they can't become part of the statement.
    values = [connection.execute(f"SELECT {one}").fetchall()[0][0] for one in parameters]
    found = connection.execute(sql, values) if values else connection.execute(sql)
    columns = found.description or []
    types = [column[1] for column in columns]
    return {
        "columns": [column[0] for column in columns],
        "column_types": [str(column_type(kind)) for kind in types],
        "rows": [[text(value, kind) for value, kind in zip(row, types, strict=True)] for row in found.fetchall()],
    }
