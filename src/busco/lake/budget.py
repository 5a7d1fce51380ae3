"""What DuckDB may use of its container: memory, threads, disk; and its word that this was not enough, as ours."""

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
# What Python, dbt, pyiceberg and the extensions take, and what DuckDB takes of the rest, its limit being no hard one
# (measured: docs/decisions/009-memory-disk-and-credentials.md).
_OWN_BYTES = 350 * MIB
_SHARE = 0.75
# A container below this is too small for any model, and DuckDB still needs something to tell so with.
_LEAST_BYTES = 128 * MIB
# What stays free for everything else that is written to the same disk: dbt's target folder, an ingest's scratch files.
_FREE_SHARE, _FREE_BYTES = 0.1, 256 * MIB

_SPILL = re.compile(r"failed to offload data block|Could not write file .*No space left on device")
_MEMORY = re.compile(r"Out of Memory Error|std::bad_alloc")
_USED = re.compile(r"\([\d.]+ \w+/([\d.]+ \w+) used\)")


@dataclass(frozen=True)
class Budget:
    """What a DuckDB of this process may use.

    `memory` and `spill` are in DuckDB's words, empty for its own default; `threads` None likewise; `container` and
    `free` in bytes: the container's memory limit, and what was free on the disk of `folder` at the beginning.
    """

    memory: str
    container: int | None
    threads: int | None
    folder: Path
    free: int
    spill: str


def budget(settings: Settings, among: int = 1) -> Budget:
    """The budget of a new DuckDB: a share of the container's memory unless the settings say how much, its CPUs, and the
    disk below the state folder, as far as it is free now.

    The folder to spill to is this DuckDB's own: of two processes that spill to one, one crashes.

    Args:
        among: how many DuckDBs of this process share it at the same time.
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
    """The bytes that DuckDB gets of a container's memory limit."""
    return max(int((limit - _OWN_BYTES) * _SHARE), min(_LEAST_BYTES, limit // 2))


@lru_cache(maxsize=1)
def _warn_of_no_limit() -> None:
    log.warning(
        "no memory limit found (cgroup, ECS task metadata): DuckDB may take 80 % of the host's memory, and the "
        "container may be killed; set BUSCO_DUCKDB_MEMORY_LIMIT"
    )


def explained(text: str, given: Budget) -> BuscoError | None:
    """DuckDB's word that memory or disk was not enough, as ours; None for any other error.

    DuckDB's own advice is left out: it is for somebody who opened the connection himself.
    """
    line = next((line.strip() for line in text.splitlines() if _SPILL.search(line) or _MEMORY.search(line)), None)
    if line is None:
        return None
    found = _USED.search(line)
    if _SPILL.search(line):
        limit = found.group(1) if found else given.spill
        return BuscoError(
            f"the disk that DuckDB spills to is full: {given.folder.parent} had {size(given.free)} free at the "
            f"beginning, of which DuckDB may use {limit}\n{line}",
            _larger("make room there, put BUSCO_STATE_DIR on a larger disk, or raise BUSCO_DUCKDB_SPILL_LIMIT"),
        )
    limit = found.group(1) if found else given.memory or "80 % of the host's memory"
    of = f" of the container's {size(given.container)}" if given.container is not None else ""
    return BuscoError(
        f"memory was not enough: DuckDB may use {limit}{of}, and could not spill the rest to the disk\n{line}",
        _larger("raise BUSCO_DUCKDB_MEMORY_LIMIT, or build fewer models at once (BUSCO_DBT_THREADS)"),
    )


def _larger(elsewhere: str) -> str:
    if not container.in_ecs():
        return elsewhere
    return "a larger task: `meta: {ecs: large}` for this model alone, BUSCO_ECS_SIZE=large for the run's shared runner"


def size(count: int) -> str:
    """Bytes for people, as DuckDB writes them: `1.5 GiB`."""
    value = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.1f} {unit}" if unit != "bytes" else f"{count} bytes"
        value /= 1024
    return f"{value:.1f} TiB"
