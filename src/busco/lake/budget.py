"""Chooses DuckDB's limits for memory, threads and disk, and explains the errors that occur if a limit is too low."""

from __future__ import annotations

import logging
import math
import os
import re
import shutil
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from busco import container
from busco.errors import BuscoError
from busco.processes import clear_left_behind, own_name
from busco.settings import Settings

log = logging.getLogger(__name__)

MIB = 1 << 20
# The memory used by Python, dbt, pyiceberg and the extensions, and the share of the rest that DuckDB gets. DuckDB
# doesn't get all of the rest, because it can exceed its limit (measured:
# docs/decisions/009-memory-disk-and-credentials.md).
_OWN_BYTES = 350 * MIB
_SHARE = 0.75
# The minimum for DuckDB, but at most half of the container's memory. A container that leaves DuckDB less than this is
# too small for any model, but DuckDB still needs enough memory to report the error.
_LEAST_BYTES = 128 * MIB
# Disk space left free for everything else on the same disk, such as dbt's target folder and ingest's scratch files.
_FREE_SHARE, _FREE_BYTES = 0.1, 256 * MIB

_SPILL = re.compile(r"failed to offload data block|Could not write file .*No space left on device")
_MEMORY = re.compile(r"Out of Memory Error|std::bad_alloc")
_USED = re.compile(r"\([\d.]+ \w+/([\d.]+ \w+) used\)")


@dataclass(frozen=True)
class Budget:
    """The resources that a DuckDB instance in this process may use.

    `memory` and `spill` use DuckDB's notation; an empty string means DuckDB's default, and so does None for `threads`.
    `container` is the container's memory limit and `free` the initial free space on the disk that holds `folder`, both
    in bytes.
    """

    memory: str
    container: int | None
    threads: int | None
    folder: Path
    free: int
    spill: str


def budget(settings: Settings, among: int = 1) -> Budget:
    """Returns the budget of a new DuckDB instance.

    The instance gets all of the container's CPUs, and a share of the container's memory and of the free space on the
    state folder's disk, unless the settings specify the amounts. It spills to a folder of its own, because if two
    processes spill to the same folder, one of them crashes.

    Args:
        among: the number of DuckDB instances in this process that share the container at the same time.
    """
    root = settings.state / "spill"
    root.mkdir(parents=True, exist_ok=True)
    clear_left_behind(root, "duckdb")
    free = shutil.disk_usage(root).free
    limit, cpus = container.memory_limit_bytes(), container.cpu_limit()
    if limit is None and container.in_ecs():
        _warn_of_no_limit()
    memory = settings.duckdb_memory_limit or (f"{share_of(limit) // among}B" if limit is not None else "")
    threads = max(1, math.ceil(cpus)) if cpus is not None and cpus < (os.cpu_count() or 1) else None
    spill = settings.duckdb_spill_limit or f"{max(free - max(int(free * _FREE_SHARE), _FREE_BYTES), 0) // among}B"
    return Budget(memory, limit, threads, root / own_name("duckdb"), free, spill)


def share_of(limit: int) -> int:
    """Returns how many bytes of a container's memory limit DuckDB gets."""
    return max(int((limit - _OWN_BYTES) * _SHARE), min(_LEAST_BYTES, limit // 2))


@lru_cache(maxsize=1)
def _warn_of_no_limit() -> None:
    log.warning(
        "no memory limit found in cgroups or ECS task metadata: DuckDB may use 80% of the host's memory, and the "
        "container may be killed; set BUSCO_DUCKDB_MEMORY_LIMIT"
    )


def explained(text: str, given: Budget) -> BuscoError | None:
    """Translates a DuckDB error about too little memory or disk space; returns None for any other error.

    DuckDB's own advice is left out, because it is for people who opened the connection themselves.
    """
    line = next((line.strip() for line in text.splitlines() if _SPILL.search(line) or _MEMORY.search(line)), None)
    if line is None:
        return None
    found = _USED.search(line)
    if _SPILL.search(line):
        limit = found.group(1) if found else given.spill
        return BuscoError(
            f"the disk that DuckDB spills to is full: {given.folder.parent} had {size(given.free)} free at the "
            f"start, of which DuckDB may use {limit}\n{line}",
            _larger("free up space there, move BUSCO_STATE_DIR to a larger disk, or raise BUSCO_DUCKDB_SPILL_LIMIT"),
        )
    limit = found.group(1) if found else given.memory or "80% of the host's memory"
    of = f" of the container's {size(given.container)}" if given.container is not None else ""
    return BuscoError(
        f"not enough memory: DuckDB may use {limit}{of} and could not spill the rest to disk\n{line}",
        _larger("raise BUSCO_DUCKDB_MEMORY_LIMIT, or build fewer models at once (BUSCO_DBT_THREADS)"),
    )


def _larger(elsewhere: str) -> str:
    if not container.in_ecs():
        return elsewhere
    return "use a larger task: `meta: {ecs: large}` for this model, or BUSCO_ECS_SIZE=large for the run's shared runner"


def size(count: int) -> str:
    """Formats a number of bytes as DuckDB does: `1.5 GiB`."""
    value = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.1f} {unit}" if unit != "bytes" else f"{count} bytes"
        value /= 1024
    return f"{value:.1f} TiB"
