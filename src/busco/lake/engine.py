"""DuckDB connections that read and write the lake; dbt's environment only."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import boto3
import duckdb

from busco.errors import BuscoError
from busco.lake.types import literal
from busco.settings import Settings

# A partitioned COPY keeps this many files open; below the number of partitions it writes several files for each
# (iceberg.md: 365 partitions gave 1,465 files with 100, 365 with 400).
_OPEN_PARTITIONS = 1000


def connect(settings: Settings, iceberg: bool = False) -> duckdb.DuckDBPyConnection:
    """An in-memory DuckDB that reaches the lake's S3; with `iceberg`, `iceberg_scan` too.

    Its own settings: no download at run time, UTC, insertion order not kept.
    """
    connection = duckdb.connect(":memory:", config=config(settings))
    prepare(connection, settings, iceberg)
    return connection


def config(settings: Settings) -> dict[str, Any]:
    """DuckDB's settings at connect: nothing is downloaded, and spilling stays below the state folder."""
    spill = settings.state / "spill"
    spill.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {
        "autoinstall_known_extensions": "false",
        "autoload_known_extensions": "false",
        "temp_directory": str(spill),
        "preserve_insertion_order": "false",
        "partitioned_write_max_open_files": _OPEN_PARTITIONS,
    }
    if settings.duckdb_memory_limit:
        options["memory_limit"] = settings.duckdb_memory_limit
    return options


def prepare(connection: duckdb.DuckDBPyConnection, settings: Settings, iceberg: bool = False) -> None:
    """Loads the extensions from their wheels and gives the connection the S3 credentials of this process."""
    for name in ("httpfs", "avro", "iceberg") if iceberg else ("httpfs",):
        connection.execute(f"load {literal(str(extension_file(name)))}")
    connection.execute("set global timezone = 'UTC'")
    connection.execute(secret_sql(settings))


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


def secret_sql(settings: Settings) -> str:
    """The statement that gives DuckDB this process's AWS credentials, endpoint and region.

    Raises:
        BuscoError: there are no credentials.
    """
    credentials = boto3.session.Session(region_name=settings.region).get_credentials()
    if credentials is None:
        raise BuscoError("no AWS credentials found", "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and its secret")
    frozen = credentials.get_frozen_credentials()
    parts = {
        "key_id": frozen.access_key,
        "secret": frozen.secret_key,
        "region": settings.region,
        "session_token": frozen.token,
    }
    if settings.endpoint_url:
        url = urlparse(settings.endpoint_url)
        parts |= {"endpoint": url.netloc, "url_style": "path"}
    said = ", ".join(f"{name} {literal(value)}" for name, value in parts.items() if value)
    plain = settings.endpoint_url is not None and settings.endpoint_url.startswith("http://")
    return f"create or replace secret lake (type s3, {said}, use_ssl {str(not plain).lower()})"
