"""Checks what this machine or container has: variables, files, memory, disk, and the parsed project."""

from __future__ import annotations

import difflib
import os
import stat
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil

from busco import container
from busco.doctor import Surroundings
from busco.embedded.keeper import is_stale
from busco.environments import here
from busco.errors import BuscoError
from busco.lake.budget import MIB, budget, share_of, size
from busco.project import Project
from busco.settings import Settings
from busco.text import count

_SMALL = 512 * MIB
_SETTLING = 15  # seconds; a change that is more recent may not have been parsed yet


# variables for building and starting the platform, which are not settings of its processes (.env.example,
# docker-compose.prod.yml, docs/deploying.md)
_NOT_SETTINGS = {
    "BUSCO_AIRFLOW_PYTHON", "BUSCO_AWS_PORT", "BUSCO_BUILD", "BUSCO_CODE_VERSION", "BUSCO_DBT_PYTHON",
    "BUSCO_REQUIRES", "BUSCO_SCREENSHOTS", "BUSCO_TEST_ENDPOINT_ACCEPTED", "BUSCO_UPDATE_SNAPSHOTS", "BUSCO_VERSION",
}  # fmt: skip
# the settings that a process on AWS can't determine by itself
_NEEDED = ("lake_bucket", "landing_bucket", "logs_bucket", "airflow_url")


def variables(around: Surroundings) -> str:
    """Every BUSCO_… variable is known, and on AWS those without a default are set."""
    known = {f"BUSCO_{name.upper()}" for name in Settings.model_fields} | _NOT_SETTINGS
    given = {name for name in os.environ if name.startswith("BUSCO_")}
    if unknown := sorted(given - known):
        near = {name: difflib.get_close_matches(name, known, 1) for name in unknown}
        names = [f"{name} (did you mean {near[name][0]}?)" if near[name] else name for name in unknown]
        raise BuscoError(
            f"unknown variables: {', '.join(names)}", "correct or unset them; .env.example lists all known ones"
        )
    if around.settings.platform == "aws":
        needed = _NEEDED if here("airflow") else _NEEDED[:1]
        if missing := [f"BUSCO_{name.upper()}" for name in needed if not getattr(around.settings, name)]:
            raise BuscoError(f"not set: {', '.join(missing)}", "set them as described in .env.example")
    return f"{count(len(given), 'BUSCO_… variable')} set, all known"


def files(around: Surroundings) -> str:
    """No other user can read .env, and this user can read and write the folders that the process needs."""
    settings, lines = around.settings, []
    secret = settings.home / ".env"
    if secret.is_file():
        mode = stat.S_IMODE(secret.stat().st_mode)
        if mode & 0o077:
            raise BuscoError(
                f"{secret} contains secrets, but other users can read it (mode {mode:o})", f"chmod 600 {secret}"
            )
        lines.append(f"{secret} is readable only by its owner")
    for folder in (settings.dbt_project, settings.home / "dags"):
        if folder.exists() and not os.access(folder, os.R_OK | os.X_OK):
            raise BuscoError(
                f"user {os.getuid()} cannot read {folder}",
                "make AIRFLOW_UID its owner: scripts/set_local_dir_permission.sh",
            )
        lines.append(f"{folder} is readable")
    # the state folder is not checked here, because the disk check writes to it
    if airflow := os.environ.get("AIRFLOW_HOME"):
        logs = Path(airflow) / "logs"
        if logs.is_dir() and not os.access(logs, os.W_OK | os.X_OK):
            raise BuscoError(
                f"user {os.getuid()} cannot write to {logs}",
                f"chown it to {os.getuid()}, or make it writable by group 0",
            )
        lines.append(f"{logs} is writable")
    return f"user {os.getuid()}: {', '.join(lines)}"


def manifest(around: Surroundings) -> str:
    """Each dbt project's manifest, from which Airflow draws its graph, exists and can be read.

    On development machines, the manifest must not be older than the project.
    """
    return "; ".join(map(_parsed, around.settings.of_all_projects()))


def _parsed(settings: Settings) -> str:
    path = settings.manifest_path
    if not path.is_file():
        raise BuscoError(
            f"{settings.dbt_project_dir} has not been parsed here: {path} is missing", "run: busco dbt parse"
        )
    written = path.stat().st_mtime
    when = datetime.fromtimestamp(written, UTC)
    # in an image the project never changes, and its files' times are those of a checkout
    if settings.platform != "aws" and is_stale(settings.dbt_project, path) and time.time() - written > _SETTLING:
        parse_error = settings.parse_error_path.read_text().strip() if settings.parse_error_path.is_file() else ""
        raise BuscoError(
            f"{settings.dbt_project_dir} was changed after it was parsed at {when:%Y-%m-%d %H:%M} UTC: Airflow's graph "
            "is outdated",
            parse_error or "run: busco dbt parse; in Docker Compose, check that local-aws is running",
        )
    age = timedelta(seconds=int(time.time() - written))
    return f"{models(Project.read(path))}, parsed {when:%Y-%m-%d %H:%M} UTC ({age} ago)"


def models(project: Project) -> str:
    """Returns a project's name and number of models."""
    number = sum(node["resource_type"] == "model" for node in project.nodes.values())
    return f"{project.name}: {count(number, 'model')}"


def memory_and_cpu(around: Surroundings) -> str:
    """DuckDB's memory limit is known, and is large enough."""
    settings = around.settings
    limit, cpus = container.memory_limit_bytes(), container.cpu_limit()
    processors = f"{cpus:g} CPUs" if cpus is not None else f"{os.cpu_count()} CPUs, no limit"
    given = settings.duckdb_memory_limit
    if limit is None:
        if container.in_ecs() and not given:
            raise BuscoError(
                "this container has no memory limit (cgroup, ECS task metadata): DuckDB would use 80% of the host's "
                "memory",
                "set the task definition's memory, or BUSCO_DUCKDB_MEMORY_LIMIT",
            )
        total = size(psutil.virtual_memory().total)
        return f"no memory limit, {total} in total: DuckDB may use {given or '80%'}; {processors}"
    if limit < _SMALL and not given:
        raise BuscoError(
            f"{size(limit)} of memory: after Python and dbt, only {size(share_of(limit))} is left for DuckDB",
            f"give the container at least {size(_SMALL)}",
        )
    return f"{size(limit)} of memory, of which DuckDB may use {given or size(share_of(limit))}; {processors}"


def disk(around: Surroundings) -> str:
    """The folder that DuckDB spills to is writable and has free space."""
    given = budget(around.settings)
    folder = given.folder.parent
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"\0" * MIB)
        file.flush()
    if given.spill in ("0B", "0 B"):
        raise BuscoError(
            f"{folder} has {size(given.free)} free, so DuckDB cannot spill",
            "free up space there, put BUSCO_STATE_DIR on a larger disk, or give the task more ephemeral storage",
        )
    spill = given.spill if around.settings.duckdb_spill_limit else size(int(given.spill.rstrip("B")))
    return f"{folder}: {size(given.free)} free, of which DuckDB can use {spill} to spill"
