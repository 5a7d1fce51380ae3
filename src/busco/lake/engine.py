"""Opens DuckDB connections that read and write the lake; only usable in dbt's Python environment."""

from __future__ import annotations

import contextlib
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

# A partitioned COPY keeps up to this many files open. If there are more partitions, it writes several files for each of
# them (docs/iceberg.md: 365 partitions resulted in 1,465 files with a limit of 100, and in 365 with a limit of 400).
_OPEN_PARTITIONS = 1000
# DuckDB 1.5 changes this setting itself while it runs a PIVOT without IN.
SET_BY_PIVOT = "current_transaction_invalidation_policy"


# Connection settings for SQL that is not the platform's own: among other things, this process's variables can't be used
# as tables, and no secrets are stored on disk.
CLOSED: dict[str, Any] = {
    "python_enable_replacements": "false",
    "allow_persistent_secrets": "false",
    "allow_unredacted_secrets": "false",
    "allow_community_extensions": "false",
}


def connect(settings: Settings, iceberg: bool = False, among: int = 1) -> duckdb.DuckDBPyConnection:
    """Opens an in-memory DuckDB database with access to the lake's bucket and, if `iceberg`, with `iceberg_scan`.

    The database downloads nothing at run time, uses UTC, does not preserve insertion order, and stays within the
    container's limits. If this process has several such connections (`among`), they share the limits equally.
    """
    given = budget(settings, among)
    connection = duckdb.connect(":memory:", config=config(given))
    prepare(connection, given)
    reach(connection, settings, iceberg)
    return connection


def config(given: Budget) -> dict[str, Any]:
    """Returns the settings to open DuckDB with: it downloads nothing, and its resources are limited to the budget."""
    options: dict[str, Any] = {
        "autoinstall_known_extensions": "false",
        "autoload_known_extensions": "false",
        "temp_directory": str(given.folder),
        "preserve_insertion_order": "false",
        "partitioned_write_max_open_files": _OPEN_PARTITIONS,
        # One HEAD request per file and process, not one per file and statement: data files never change.
        "enable_http_metadata_cache": "true",
    }
    if given.memory:
        options["memory_limit"] = given.memory
    if given.threads is not None:
        options["threads"] = given.threads
    return options


def prepare(connection: duckdb.DuckDBPyConnection, given: Budget) -> None:
    """Applies the settings that DuckDB accepts only after connecting."""
    connection.execute("set global timezone = 'UTC'")
    # If this limit is set when connecting, DuckDB 1.5 accepts and shows it but does not enforce it.
    connection.execute(f"set global max_temp_directory_size = {literal(given.spill)}")


def reach(connection: duckdb.DuckDBPyConnection, settings: Settings, iceberg: bool = False) -> None:
    """Loads the extensions from their wheels and gives the connection this process's S3 credentials."""
    for name in ("httpfs", "avro", "iceberg") if iceberg else ("httpfs",):
        connection.execute(f"load {literal(str(extension_file(name)))}")
    credentials.give(connection, settings)


def create_view(connection: duckdb.DuckDBPyConnection, relation: str, queries: Sequence[str]) -> None:
    """Creates or replaces a view of the first of these queries that DuckDB accepts.

    Args:
        relation: the view's quoted name, with its schema.

    Raises:
        duckdb.Error: DuckDB does not accept the last query either.
    """
    *others, last = [f"create or replace view {relation} as {query}" for query in queries]
    for statement in others:
        with contextlib.suppress(duckdb.Error):
            connection.execute(statement)
            return
    connection.execute(last)


def close(connection: duckdb.DuckDBPyConnection, folders: Sequence[str] = (), files: Sequence[str] = ()) -> None:
    """Permanently restricts a connection's database to the files below `folders` (URLs) and those in `files` (paths).

    Settings can no longer be changed, except to renew credentials, and nothing can be attached, installed or loaded.
    The spill folder stays accessible. See "Securing DuckDB" in DuckDB's documentation.
    """
    settings = (*credentials.RENEWED, SET_BY_PIVOT)
    allowed = {"allowed_directories": folders, "allowed_paths": files, "allowed_configs": settings}
    for name, values in allowed.items():
        connection.execute(f"set global {name} = [{', '.join(map(literal, values))}]")
    connection.execute("set global enable_external_access = false")
    connection.execute("set global lock_configuration = true")


def extension_file(name: str) -> Path:
    """Returns the path of a DuckDB extension in its wheel.

    Raises:
        BuscoError: the wheel is not installed, or it is for a different version of DuckDB.
    """
    version = f"v{duckdb.__version__}"
    try:
        module = importlib.import_module(f"duckdb_extension_{name}")
    except ImportError as error:
        raise BuscoError(f"the wheel duckdb-extension-{name} is not installed", "run make setup") from error
    path = Path(str(module.__file__)).parent / "extensions" / version / f"{name}.duckdb_extension"
    if not path.is_file():
        raise BuscoError(f"the wheel duckdb-extension-{name} has no extension for DuckDB {version}", "run make setup")
    return path
