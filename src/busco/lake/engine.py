"""DuckDB connections that read and write the lake; dbt's environment only."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb

from busco.errors import BuscoError
from busco.lake import credentials
from busco.lake.budget import Budget, budget
from busco.lake.types import literal
from busco.settings import Settings

# A partitioned COPY keeps this many files open; below the number of partitions it writes several files for each
# (iceberg.md: 365 partitions gave 1,465 files with 100, 365 with 400).
_OPEN_PARTITIONS = 1000
# DuckDB sets it for itself while a PIVOT without IN runs (1.5)
SET_BY_PIVOT = "current_transaction_invalidation_policy"


# At connect, for SQL that is not the platform's own: no variables of this process as tables, no secrets on the disk.
CLOSED: dict[str, Any] = {
    "python_enable_replacements": "false",
    "allow_persistent_secrets": "false",
    "allow_unredacted_secrets": "false",
    "allow_community_extensions": "false",
}


def connect(settings: Settings, iceberg: bool = False, among: int = 1) -> duckdb.DuckDBPyConnection:
    """An in-memory DuckDB that reaches the lake's S3; with `iceberg`, `iceberg_scan` too.

    Its own settings: no download at run time, UTC, insertion order not kept, the container's limits, of which it takes
    its part where this process has several (`among`).
    """
    given = budget(settings, among)
    connection = duckdb.connect(":memory:", config=config(given))
    prepare(connection, given)
    reach(connection, settings, iceberg)
    return connection


def config(given: Budget) -> dict[str, Any]:
    """DuckDB's settings at connect: nothing is downloaded, and no more is used than is given."""
    options: dict[str, Any] = {
        "autoinstall_known_extensions": "false",
        "autoload_known_extensions": "false",
        "temp_directory": str(given.folder),
        "preserve_insertion_order": "false",
        "partitioned_write_max_open_files": _OPEN_PARTITIONS,
    }
    if given.memory:
        options["memory_limit"] = given.memory
    if given.threads is not None:
        options["threads"] = given.threads
    return options


def prepare(connection: duckdb.DuckDBPyConnection, given: Budget) -> None:
    """Sets what DuckDB takes only once it is connected."""
    connection.execute("set global timezone = 'UTC'")
    # given at connect it is taken, shown and then not obeyed (DuckDB 1.5)
    connection.execute(f"set global max_temp_directory_size = {literal(given.spill)}")


def reach(connection: duckdb.DuckDBPyConnection, settings: Settings, iceberg: bool = False) -> None:
    """Loads the extensions from their wheels and gives the connection the S3 credentials of this process."""
    for name in ("httpfs", "avro", "iceberg") if iceberg else ("httpfs",):
        connection.execute(f"load {literal(str(extension_file(name)))}")
    credentials.give(connection, settings)


def close(connection: duckdb.DuckDBPyConnection, folders: Sequence[str] = (), files: Sequence[str] = ()) -> None:
    """Takes from a connection's database, for good, all files but those below `folders` (URLs) and `files` (paths), and
    all changes of settings but the renewal of credentials; nothing can be attached, installed or loaded any more.

    DuckDB's documentation, "Securing DuckDB". Where it spills to stays open to it.
    """
    settings = (*credentials.RENEWED, SET_BY_PIVOT)
    allowed = {"allowed_directories": folders, "allowed_paths": files, "allowed_configs": settings}
    for name, values in allowed.items():
        connection.execute(f"set global {name} = [{', '.join(map(literal, values))}]")
    connection.execute("set global enable_external_access = false")
    connection.execute("set global lock_configuration = true")


def extension_file(name: str) -> Path:
    """The file of a DuckDB extension within its wheel.

    Raises:
        BuscoError: the wheel is not installed, or is of another version than DuckDB.
    """
    version = f"v{duckdb.__version__}"
    try:
        module = importlib.import_module(f"duckdb_extension_{name}")
    except ImportError as error:
        raise BuscoError(f"the wheel duckdb-extension-{name} is not installed", "make setup") from error
    path = Path(str(module.__file__)).parent / "extensions" / version / f"{name}.duckdb_extension"
    if not path.is_file():
        raise BuscoError(f"the wheel duckdb-extension-{name} has no extension for DuckDB {version}", "make setup")
    return path
