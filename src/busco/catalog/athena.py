"""Runs queries in Athena, the way data consumers do."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from botocore.exceptions import ClientError

from busco.errors import BuscoError

_POLL_SECONDS = (0.05, 0.1, 0.2, 0.5)


@dataclass(frozen=True)
class Answer:
    """A query's result: column names, column types, and rows. Rows from Athena contain text, or None for NULL."""

    columns: tuple[str, ...]
    types: tuple[str, ...]
    rows: list[tuple[Any, ...]]

    def typed(self) -> list[tuple[Any, ...]]:
        """Returns the rows with numbers, booleans and timestamps converted to their columns' types, as DuckDB would.

        Values of the types ARRAY, MAP and ROW stay text, because Athena doesn't report the types of their elements.
        """
        readers = [_reader(kind) for kind in self.types]
        return [
            tuple(None if v is None else read(v) for read, v in zip(readers, row, strict=True)) for row in self.rows
        ]


def _reader(kind: str) -> Callable[[str], Any]:
    name = kind.lower().split("(")[0].strip()
    if name in ("tinyint", "smallint", "int", "integer", "bigint"):
        return int
    if name in ("float", "real", "double"):
        return float
    if name == "decimal":
        return Decimal
    if name == "boolean":
        return lambda text: text.lower() == "true"
    return _timestamp if name.startswith("timestamp") else str


def _timestamp(text: str) -> Any:
    """Parses a timestamp from Athena; returns the text unchanged if it has a time zone other than UTC."""
    try:
        return datetime.fromisoformat(re.sub(r" UTC$", "+00:00", text))
    except ValueError:
        return text


def query(athena: Any, sql: str, workgroup: str, database: str) -> Answer:
    """Runs a query and returns all of its rows.

    Args:
        athena: a boto3 Athena client.
        database: the database for unqualified names.

    Raises:
        BuscoError: Athena rejected the query, or the query failed; the message contains Athena's reason.
    """
    try:
        started = athena.start_query_execution(
            QueryString=sql, WorkGroup=workgroup, QueryExecutionContext={"Database": database}
        )
    except ClientError as error:
        raise BuscoError(f"Athena rejected the query: {error.response['Error'].get('Message', error)}") from error
    execution = started["QueryExecutionId"]
    try:
        _wait(athena, execution)
    except KeyboardInterrupt:
        # Nobody is waiting for the result anymore, and Athena charges for the data scanned.
        with contextlib.suppress(ClientError):
            athena.stop_query_execution(QueryExecutionId=execution)
        raise
    columns: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    rows: list[tuple[Any, ...]] = []
    for page in athena.get_paginator("get_query_results").paginate(QueryExecutionId=execution):
        result = page["ResultSet"]
        if not columns:
            info = result["ResultSetMetadata"]["ColumnInfo"]
            columns = tuple(column["Name"] for column in info)
            kinds = tuple(column["Type"] for column in info)
        rows += [tuple(cell.get("VarCharValue") for cell in row.get("Data", [])) for row in result["Rows"]]
    # The first row of a SELECT's first page repeats the column names (Athena API reference, GetQueryResults).
    if rows and rows[0] == columns:
        rows = rows[1:]
    return Answer(columns, kinds, rows)


def _wait(athena: Any, execution: str) -> None:
    waited = 0
    while True:
        status = athena.get_query_execution(QueryExecutionId=execution)["QueryExecution"]["Status"]
        if status["State"] == "SUCCEEDED":
            return
        if status["State"] in ("FAILED", "CANCELLED"):
            reason = status.get("StateChangeReason") or "no reason given"
            raise BuscoError(f"Athena: {reason}")
        time.sleep(_POLL_SECONDS[min(waited, len(_POLL_SECONDS) - 1)])
        waited += 1
