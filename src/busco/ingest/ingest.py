"""Runs `busco ingest`: finds the files, loads them two at a time, and reports the results."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import duckdb

from busco.aws import client
from busco.errors import BuscoError
from busco.ingest.files import Limits, SourceFile, find
from busco.ingest.landing import LandedObject, find_landed
from busco.ingest.load import Loaded, ingested_before, load
from busco.lake.deliveries import Contract
from busco.lake.engine import connect
from busco.lake.objects import ObjectStore
from busco.processes import result_of
from busco.settings import Settings

# DuckDB reads a gzip file in one thread; two files at once keep two cores busy.
_AT_ONCE = 2


@dataclass(frozen=True)
class Report:
    """The result for each file, in the given order, and each path that could not be ingested, with the reason."""

    loaded: list[Loaded]
    unknown: list[tuple[str, str]]

    @property
    def good(self) -> bool:
        return not self.unknown and all(one.outcome != "refused" for one in self.loaded)


def ingest(
    settings: Settings,
    store: ObjectStore,
    contracts: Sequence[Contract],
    paths: Sequence[str | Path],
    table: str | None,
    started: Callable[[int], Callable[[int], None]],
    follow_links: bool = False,
) -> Report:
    """Ingests files, folders and objects of the landing bucket into bronze (D1 to D4).

    A refused file does not affect the others.

    A failure of the lake, or an interruption by the user, stops the whole command.

    Args:
        paths: paths, and URLs of the landing bucket: `s3://<bucket>/<prefix>`.
        table: the table for all files; None to infer it from each file's name. An object's key determines its table.
        started: called with the number of bytes to process; returns a function that is called with the
            number of bytes processed since the last call.
        follow_links: whether links to files and folders are followed instead of refused.

    Raises:
        BuscoError: the environment is not prod (D4); there is no such table; a table is given for objects; or a URL is
            not in the landing bucket, or nothing is there.
    """
    require_prod(settings)
    urls = [path for path in paths if isinstance(path, str) and path.startswith("s3://")]
    if urls and table:
        raise BuscoError(f"{urls[0]}: an object's key determines its table", "leave out --table")
    given, unlisted = find([Path(path) for path in paths if path not in urls], contracts, table, follow_links)
    files: list[SourceFile | LandedObject] = [*given]
    unknown = [(str(path), reason) for path, reason in unlisted]
    for url in urls:
        landed, unaddressed = find_landed(client("s3", settings), settings.landing_bucket, url, contracts)
        files += landed
        unknown += unaddressed
    return Report(load_all(settings, store, files, started), unknown)


def require_prod(settings: Settings) -> None:
    """Checks that ingest may write to bronze (D4).

    Raises:
        BuscoError: the environment is not prod.
    """
    if settings.environment != "prod":
        raise BuscoError(
            f"bronze can be written to only in the prod environment, not in {settings.environment}",
            "unset BUSCO_ENVIRONMENT to ingest",
        )


def load_all(
    settings: Settings,
    store: ObjectStore,
    files: Sequence[SourceFile | LandedObject],
    started: Callable[[int], Callable[[int], None]],
    again: bool = False,
    done: Callable[[int, Loaded], None] = lambda *_: None,
) -> list[Loaded]:
    """Loads files and objects of the landing bucket, two at a time; returns the result for each, in the given order.

    Files with the same name are loaded one after another, so that their deliveries are in order.

    Args:
        started: see `ingest`.
        again: whether objects are loaded although a delivery was made from them before.
        done: called with a file's position and result as soon as there is one. Two threads call it, but for files with
            the same name only one.
    """
    groups: dict[tuple[str, str], list[int]] = {}
    for position, file in enumerate(files):
        groups.setdefault((file.contract.name, file.name), []).append(position)
    limits = Limits(settings.ingest_row_bytes, settings.ingest_file_bytes)
    report_done = started(3 * sum(file.size for file in files))
    results: dict[int, Loaded] = {}
    connections: list[duckdb.DuckDBPyConnection] = []
    own = threading.local()
    over = threading.Event()

    def progress(done: int) -> None:
        if over.is_set():
            raise _Over
        report_done(done)

    def load_one(file: SourceFile | LandedObject) -> Loaded:
        # opening a database takes longer than loading a small file, so each thread keeps the one that it has opened
        database = getattr(own, "database", None)
        if database is None:
            database = databases.enter_context(connect(settings, among=min(_AT_ONCE, len(groups))))
            database.execute("set global preserve_insertion_order = true")
            own.database = database
        with database.cursor() as connection:
            connections.append(connection)
            progress(0)
            loaded = load(connection, store, file, settings.state / "spill", limits, progress)
            connections.remove(connection)
        if loaded.outcome == "refused":
            # an error of DuckDB may have made the whole database unusable
            database.close()
            own.database = None
        return loaded

    def work(positions: list[int]) -> None:
        for position in positions:
            file = files[position]
            known = ingested_before(store, file) if isinstance(file, LandedObject) and not again else None
            if known:
                progress(3 * file.size)
            results[position] = known or load_one(file)
            done(position, results[position])

    with contextlib.ExitStack() as databases, ThreadPoolExecutor(max_workers=_AT_ONCE) as pool:
        loading: list[Future[None]] = []
        try:
            loading += (pool.submit(work, positions) for positions in groups.values())
            for one in loading:
                result_of(one)
        except BaseException:
            over.set()
            _interrupt(connections, [one for one in loading if not one.cancel()])
            raise
    return [results[position] for position in range(len(files))]


class _Over(Exception):
    """Raised to stop reading a file after another file failed or the user interrupted the command."""


def _interrupt(connections: list[duckdb.DuckDBPyConnection], loading: list[Future[None]]) -> None:
    """Interrupts DuckDB until all files in progress have stopped.

    The interruption is repeated because it has no effect on queries that start after it.
    """
    while wait(loading, timeout=0.05).not_done:
        for connection in tuple(connections):
            # interrupt raises this if the connection has been closed because its file is done
            with contextlib.suppress(duckdb.ConnectionException):
                connection.interrupt()
