"""The engines that the tests use: where they are, and how their values compare with DuckDB's."""

from __future__ import annotations

import json
import math
import os
import secrets
import shlex
import struct
import subprocess
import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, wait
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import duckdb
import pytest
import trino.dbapi

from busco.lake import types
from busco.lake.contents import read_versions
from busco.lake.layout import split_table
from busco.lake.reading import open_versions
from busco.lake.records import Release, Version
from busco.lake.types import quoted
from busco.settings import LAYERS
from tests.platforms import Platform

SESSION = Path(__file__).with_name("spark_session.py")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
CATALOG = "awsdatacatalog"
Rows = Counter[tuple[str, ...]]


def needs(variable: str) -> pytest.MarkDecorator:
    """Skips tests, with a message, if the variable that names their engine is not set."""
    reason = f'{variable} is not set (docs/contributing.md, "With other engines")'
    return pytest.mark.skipif(not os.environ.get(variable), reason=reason)


class Trino:
    """A Trino server, whose catalog `awsdatacatalog` is the tests' Glue."""

    def __init__(self, url: str) -> None:
        parsed = urlparse(url)
        self._connection = trino.dbapi.connect(
            host=parsed.hostname, port=parsed.port, http_scheme=parsed.scheme, user="test", catalog=CATALOG,
            schema="busco_gold", timezone="UTC",
        )  # fmt: skip

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """Runs a statement and returns its rows."""
        return [tuple(row) for row in self._connection.cursor().execute(sql).fetchall()]

    def table(self, version: Version, where: str = "true") -> Rows:
        """Returns the rows of a version's table as Glue shows it."""
        return comparable(version, self.rows(f"select {names(version)} from {shown(version.table)} where {where}"))


class Spark:
    """A Spark session, whose catalog `lake` is the tests' Glue.

    Args:
        command: runs a Python script with Spark.
        variables: the variables with which it reaches the local AWS.
    """

    def __init__(self, command: str, variables: Mapping[str, str]) -> None:
        key, connected = secrets.token_hex(16), Future[Connection]()
        listener = Listener(("127.0.0.1", 0), authkey=key.encode())
        session = [*shlex.split(command), str(SESSION), str(listener.address[1]), key]
        self._process = subprocess.Popen(session, env={**os.environ, **variables})
        threading.Thread(target=lambda: connected.set_result(listener.accept()), daemon=True).start()
        while not wait([connected], timeout=0.5).done:
            assert self._process.poll() is None, f"BUSCO_TEST_SPARK ended with status {self._process.returncode}"
        self._connection = connected.result()
        listener.close()

    def close(self) -> None:
        """Ends the session."""
        self._connection.close()
        self._process.wait(timeout=60)

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """Runs a statement and returns its rows."""
        return list(self._ask("sql", sql))

    def schema(self, table: str) -> dict[str, Any]:
        """Returns the schema of a table in Glue, such as `gold.fct`, as Spark writes it as JSON."""
        return dict(json.loads(self._ask("schema", in_spark(table))))

    def table(self, version: Version) -> Rows:
        """Returns the rows of a version's table as Glue shows it."""
        zoned = [column.type == "TIMESTAMP WITH TIME ZONE" for column in version.columns]
        # Python's conversion of a timestamp to the machine's time zone fails for the first and last years
        selected = ", ".join(
            f"unix_micros({in_spark(column.name)})" if is_zoned else in_spark(column.name)
            for column, is_zoned in zip(version.columns, zoned, strict=True)
        )
        found = self.rows(f"select {selected} from {in_spark(version.table)}")
        return comparable(version, [[_moment(*pair) for pair in zip(row, zoned, strict=True)] for row in found])

    def _ask(self, *request: str) -> Any:
        self._connection.send(request)
        good, answer = self._connection.recv()
        if not good:
            raise SparkError(answer.partition("\n\tat ")[0])
        return answer


def _moment(value: Any, is_microseconds: bool) -> Any:
    return EPOCH + timedelta(microseconds=value) if is_microseconds and value is not None else value


class SparkError(Exception):
    """Spark refused a statement."""


def in_spark(name: str) -> str:
    """Returns a column's name, or a table's (`gold.fct` is lake.busco_gold.fct), with each of its parts quoted."""
    layer, dot, table = name.partition(".")
    parts = ("lake", f"busco_{layer}", table) if dot and layer in LAYERS else (name,)
    return ".".join("`" + part.replace("`", "``") + "`" for part in parts)


def shown(table: str) -> str:
    """Returns a table's name in Glue, quoted: `gold.fct` is "busco_gold"."fct"."""
    layer, name = split_table(table)
    return f"{quoted(f'busco_{layer}')}.{quoted(name)}"


def names(version: Version) -> str:
    return ", ".join(quoted(column.name) for column in version.columns)


def comparable(version: Version, rows: Iterable[Sequence[Any]]) -> Rows:
    """Returns rows in a form in which two engines' values are equal only if they are exactly the same."""
    kinds = [types.parse(column.type) for column in version.columns]
    return Counter(tuple(_text(v, kind) for v, kind in zip(row, kinds, strict=True)) for row in rows)


def by_duckdb(made: Platform, release: Release | None = None) -> dict[str, tuple[Version, Rows]]:
    """Returns each table of a release (default: the live one), with its version and the rows that DuckDB reads."""
    versions = read_versions(made.store, (release or made.live()).tables.values())
    sql = {table: f"select {names(version)} from {shown(table)}" for table, version in versions.items()}
    with open_versions(made.settings, versions, "; ".join(sql.values())) as db:
        return {
            table: (version, comparable(version, db.execute(sql[table]).fetchall()))
            for table, version in versions.items()
        }


def duckdb_of(made: Platform, table: str) -> duckdb.DuckDBPyConnection:
    """Opens a DuckDB that has one table of the live release, such as `gold.fct`, under its name in Glue."""
    return open_versions(made.settings, {table: made.version(table)}, shown(table))


def _text(value: Any, kind: types.DataType) -> str:
    if value is None:
        return "NULL"
    if isinstance(kind, types.ListOf):
        return f"[{', '.join(_text(inner, kind.element) for inner in value)}]"
    if isinstance(kind, types.MapOf):
        pairs = sorted((_text(key, kind.key), _text(inner, kind.value)) for key, inner in value.items())
        return f"{{{', '.join(f'{key}: {inner}' for key, inner in pairs)}}}"
    if isinstance(kind, types.Struct):  # DuckDB and Spark return mappings, Trino returns tuples
        values = [value[name] for name, _ in kind.fields] if isinstance(value, Mapping) else list(value)
        fields = zip(kind.fields, values, strict=True)
        return f"({', '.join(f'{name}={_text(inner, of)}' for (name, of), inner in fields)})"
    if isinstance(value, Decimal):  # equal numbers can have different exponents
        return f"Decimal {value:f}".rstrip("0") if "." in f"{value:f}" else f"Decimal {value:f}."
    if isinstance(value, datetime) and value.tzinfo:
        return f"{value.astimezone(UTC)!r}"
    if kind.name == "FLOAT" and math.isfinite(value):  # returned as the shortest text, or exactly
        return repr(struct.unpack("f", struct.pack("f", value))[0])
    return repr(bytes(value) if kind.name == "BLOB" else value)
