"""The whole of `busco ingest`: files found, loaded two at a time, and told of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from busco.errors import BuscoError
from busco.ingest.files import find
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
) -> Report:
    """Ingests files and folders into bronze (D1 to D4); a refused file leaves the others alone.

    Args:
        table: the table of all of them; None tells it from each file's name.
        started: told the number of bytes to do, gives the function that is told of those done.

    Raises:
        BuscoError: another environment than prod (D4), or a path that doesn't exist.
    """
    if settings.environment != "prod":
        raise BuscoError(
            f"bronze is written in environment prod only, not in {settings.environment}",
            "unset BUSCO_ENVIRONMENT for ingest",
        )
    files, unknown = find(paths, contracts, table)
    # files of one name one after another, so that their deliveries come in order
    groups: dict[tuple[str, str], list[int]] = {}
    for position, file in enumerate(files):
        groups.setdefault((file.contract.table, file.name), []).append(position)
    progress = started(3 * sum(file.path.stat().st_size for file in files))
    results: dict[int, Loaded] = {}

    def work(positions: list[int]) -> None:
        for position in positions:
            with connect(settings) as connection:
                connection.execute("set preserve_insertion_order = true")
                results[position] = load(connection, store, files[position], progress)

    with ThreadPoolExecutor(max_workers=_AT_ONCE) as pool:
        list(pool.map(work, groups.values()))
    return Report([results[position] for position in range(len(files))], unknown)
