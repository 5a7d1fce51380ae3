"""The whole of `busco ingest`: files found, loaded two at a time, and told of."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import duckdb

from busco.errors import BuscoError
from busco.ingest.files import Limits, find
from busco.ingest.load import Loaded, load
from busco.lake.deliveries import Contract
from busco.lake.engine import connect
from busco.lake.objects import ObjectStore
from busco.settings import Settings

# DuckDB reads a gzip in one thread; two files at once keep two cores busy.
_AT_ONCE = 2


@dataclass(frozen=True)
class Report:
    """What became of each file, in the order given, and of those that no table takes."""

    loaded: list[Loaded]
    unknown: list[tuple[Path, str]]

    @property
    def good(self) -> bool:
        return not self.unknown and all(one.outcome != "refused" for one in self.loaded)


def ingest(
    settings: Settings,
    store: ObjectStore,
    contracts: Sequence[Contract],
    paths: Sequence[Path],
    table: str | None,
    started: Callable[[int], Callable[[int], None]],
    follow_links: bool = False,
) -> Report:
    """Ingests files and folders into bronze (D1 to D4); a refused file leaves the others alone.

    Args:
        table: the table of all of them; None tells it from each file's name.
        started: told the number of bytes to do, gives the function that is told of those done.
        follow_links: whether links to files and folders are followed, rather than refused.

    What goes wrong with the lake, and an interruption, end all of it.

    Raises:
        BuscoError: another environment than prod (D4), or no such table.
    """
    if settings.environment != "prod":
        raise BuscoError(
            f"bronze is written in environment prod only, not in {settings.environment}",
            "unset BUSCO_ENVIRONMENT for ingest",
        )
    files, unknown = find(paths, contracts, table, follow_links)
    # files of one name one after another, so that their deliveries come in order
    groups: dict[tuple[str, str], list[int]] = {}
    for position, file in enumerate(files):
        groups.setdefault((file.contract.table, file.name), []).append(position)
    limits = Limits(settings.ingest_row_bytes, settings.ingest_file_bytes)
    told = started(3 * sum(_size(file.path) for file in files))
    results: dict[int, Loaded] = {}
    connections: list[duckdb.DuckDBPyConnection] = []
    over = threading.Event()

    def progress(done: int) -> None:
        if over.is_set():
            raise _Over
        told(done)

    def work(positions: list[int]) -> None:
        for position in positions:
            with connect(settings, among=min(_AT_ONCE, len(groups))) as connection:
                connections.append(connection)
                connection.execute("set preserve_insertion_order = true")
                progress(0)
                results[position] = load(connection, store, files[position], settings.state / "spill", limits, progress)

    with ThreadPoolExecutor(max_workers=_AT_ONCE) as pool:
        loading: list[Future[None]] = []
        try:
            loading += (pool.submit(work, positions) for positions in groups.values())
            for one in loading:
                one.result()
        except BaseException:
            over.set()
            _interrupt(connections, [one for one in loading if not one.cancel()])
            raise
    return Report([results[position] for position in range(len(files))], unknown)


class _Over(Exception):
    """Raised where a file is being read when the others have failed, or the user has had enough."""


def _interrupt(connections: list[duckdb.DuckDBPyConnection], loading: list[Future[None]]) -> None:
    """Interrupts what DuckDB does until the files in work are let go; more than once, for a query that begins later
    than an interruption knows nothing of it."""
    while wait(loading, timeout=0.05).not_done:
        for connection in tuple(connections):
            # closed meanwhile: its file is done
            with contextlib.suppress(duckdb.ConnectionException):
                connection.interrupt()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
