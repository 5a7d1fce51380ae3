"""Checks the dbt projects, and DuckDB with its extensions. These checks run only in dbt's environment."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import duckdb

from busco.doctor import Skipped, Surroundings
from busco.doctor.machine import models
from busco.environments import code_version
from busco.errors import BuscoError
from busco.lake.engine import connect, extension_file
from busco.lake.layout import EnvironmentLayout
from busco.lake.types import literal
from busco.settings import Settings
from busco.warehouse import baked
from busco.warehouse.dbt import ensure_manifest

_EXTENSIONS = ("httpfs", "avro", "iceberg")
_PACKAGES = ("dbt-core", "dbt-duckdb", "pyiceberg")


def projects(around: Surroundings) -> str:
    """dbt can parse each project; in an image, the stored result of a parse matches the project."""
    parsed = "; ".join(map(_parsed, around.settings.of_all_projects()))
    code = code_version(around.settings)
    return parsed + (f"; code {code}" if code else "")


def _parsed(settings: Settings) -> str:
    found = baked.find(settings)
    if found is not None:
        return f"{models(found.project)}, parsed in the image"
    if settings.baked_dir is None:
        return f"{models(ensure_manifest(settings))}, parsed here"
    if baked.stamp(settings.dbt_project) is None:
        raise Skipped(f"{settings.dbt_project_dir} reads the environment (env_var), so it is parsed at each start")
    raise BuscoError(
        f"the parse stored in {settings.baked_dir} does not match the current {settings.dbt_project}, so the project "
        "is parsed again at every start",
        "rebuild the image (make image), and do not mount another project over the one in it",
    )


def extensions(around: Surroundings) -> str:  # noqa: ARG001 (the signature of every check)
    """DuckDB loads its extensions from their wheels; nothing is downloaded at run time."""
    off: dict[str, Any] = {"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"}
    with duckdb.connect(":memory:", config=off) as connection:
        for name in _EXTENSIONS:
            connection.execute(f"load {literal(str(extension_file(name)))}")
    packages = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    return f"{duckdb.__version__} with {', '.join(_EXTENSIONS)}; {packages}"


def lake(around: Surroundings) -> str:
    """DuckDB can read the lake with its own S3 client and this process's credentials."""
    settings = around.settings
    url = f"s3://{settings.lake_bucket}/{EnvironmentLayout(settings.environment).doctor}"
    with connect(settings) as connection:
        found = connection.execute(f"select size from read_blob({literal(url)})").fetchone()
    return f"{url}: {found[0] if found else 0} bytes read"
