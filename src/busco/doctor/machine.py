"""What this machine or container has: memory, disk, and the project that was put there."""

from __future__ import annotations

import os
import tempfile
from datetime import UTC, datetime

import psutil

from busco import container
from busco.doctor import Surroundings
from busco.errors import BuscoError
from busco.lake.budget import MIB, budget, share_of, size
from busco.project import Project
from busco.settings import Settings

_SMALL = 512 * MIB


def manifest(around: Surroundings) -> str:
    """Each dbt project's manifest, from which Airflow draws its graph, is there and can be read."""
    return "; ".join(map(_parsed, around.settings.of_all_projects()))


def _parsed(settings: Settings) -> str:
    path = settings.manifest_path
    if not path.is_file():
        raise BuscoError(f"{settings.dbt_project_dir} was never parsed here: {path} is missing", "busco dbt parse")
    when = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    return f"{models(Project.read(path))}, parsed {when:%Y-%m-%d %H:%M} UTC"


def models(project: Project) -> str:
    """A project's name and how many models it has."""
    count = sum(node["resource_type"] == "model" for node in project.nodes.values())
    return f"{project.name}: {count} models"


def memory_and_cpu(around: Surroundings) -> str:
    """DuckDB knows how much it may use."""
    settings = around.settings
    limit, cpus = container.memory_limit_bytes(), container.cpu_limit()
    processors = f"{cpus:g} CPUs" if cpus is not None else f"{os.cpu_count()} CPUs, no limit"
    given = settings.duckdb_memory_limit
    if limit is None:
        if container.in_ecs() and not given:
            raise BuscoError(
                "this container has no memory limit (cgroup, ECS task metadata): DuckDB would take 80 % of the host's",
                "set the task definition's memory, or BUSCO_DUCKDB_MEMORY_LIMIT",
            )
        total = size(psutil.virtual_memory().total)
        return f"no memory limit, {total} in all: DuckDB may use {given or '80 %'}; {processors}"
    if limit < _SMALL and not given:
        raise BuscoError(
            f"{size(limit)} of memory: after Python and dbt, {size(share_of(limit))} are left for DuckDB",
            f"give the container at least {size(_SMALL)}",
        )
    return f"{size(limit)} of memory, of which DuckDB may use {given or size(share_of(limit))}; {processors}"


def disk(around: Surroundings) -> str:
    """The folder that DuckDB spills to may be written, and has room."""
    given = budget(around.settings)
    folder = given.folder.parent
    with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"\0" * MIB)
        file.flush()
    if given.spill in ("0B", "0 B"):
        raise BuscoError(
            f"{folder} has {size(given.free)} free: DuckDB may spill nothing",
            "make room there, put BUSCO_STATE_DIR on a larger disk, or give the task more ephemeral storage",
        )
    spill = given.spill if around.settings.duckdb_spill_limit else size(int(given.spill.rstrip("B")))
    return f"{folder}: {size(given.free)} free, of which DuckDB may spill {spill}"
