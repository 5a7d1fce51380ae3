"""Runs queries in the local Athena: with Athena's types and texts in the result.

It replaces the function with which MiniStack runs a query in DuckDB, because that function keeps neither the types of
nested values nor a decimal's precision. The functions that `busco.embedded.athena_iceberg` puts in place of MiniStack's
own check the query and find its tables.
"""

from __future__ import annotations

import asyncio
import shutil
from contextlib import suppress
from typing import Any

import duckdb

from busco.embedded import ministack_contract
from busco.embedded.athena_catalog import result_of
from busco.embedded.athena_checks import check_statement, explained
from busco.embedded.athena_values import column_type, text

# The MiniStack functions that are wrapped, replaced or called here, with their parameters in the version this was
# written for.
EXPECTED = {
    "services.athena._run_duckdb": ["query", "database", "catalog"],
    "services.athena._rewrite_data_paths": ["query", "database", "catalog"],
    "services.athena._sql_tokens": ["sql"],
    "services.athena._Cursor": ["text"],
    "services.athena._attach_s3_table_buckets": ["conn", "buckets"],
}


def install() -> None:
    """Patches `ministack.services.athena` in this process; call it before `athena_iceberg.install`.

    Raises:
        RuntimeError: the installed MiniStack is not the version that this patch was written for.
    """
    from ministack.services import athena

    ministack_contract.check(__name__, EXPECTED, "tests/integration/test_athena_clients.py")

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
                        return _plan(connection, rewritten)
                    return _result(connection, rewritten)
            finally:
                for folder in folders:
                    shutil.rmtree(folder, ignore_errors=True)

        return await asyncio.to_thread(execute)

    athena._run_duckdb = run


def _plan(connection: duckdb.DuckDBPyConnection, sql: str) -> dict[str, Any]:
    found = _result(connection, f"EXPLAIN {sql}")
    lines = [[line] for row in found["rows"] for line in str(row[1]).splitlines()]
    return {"columns": ["Query Plan"], "column_types": ["varchar"], "rows": lines}


def _result(connection: duckdb.DuckDBPyConnection, sql: str) -> dict[str, Any]:
    found = connection.execute(sql)
    columns = found.description or []
    types = [column[1] for column in columns]
    return {
        "columns": [column[0] for column in columns],
        "column_types": [str(column_type(kind)) for kind in types],
        "rows": [[text(value, kind) for value, kind in zip(row, types, strict=True)] for row in found.fetchall()],
    }
