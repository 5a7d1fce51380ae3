"""Runs: what each is based on, who works for it, and which version of each table it has made (rules R1 to R10)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from busco.errors import BuscoError
from busco.lake.layout import EnvironmentLayout, RunLayout, new_id, slug
from busco.lake.objects import AlreadyExists, Moved, ObjectStore
from busco.lake.records import FINAL, Ending, Entry, Order, Pin, Release, Result, Runner, Version


class TakenAway(Exception):
    """Another runner has the table's entry now: whatever this one would write is late (R4)."""


@dataclass(frozen=True)
class Run:
    """One epoch of a run, with its records.

    Everything that a run's workers share lies below `layout.prefix`; a newer epoch is another `Run`.
    """

    store: ObjectStore
    environment: EnvironmentLayout
    pin: Pin

    @property
    def layout(self) -> RunLayout:
        return RunLayout(self.environment.epoch(self.pin.run, self.pin.epoch))

    @property
    def name(self) -> str:
        return self.pin.run

    @property
    def docs(self) -> str:
        """Where the run's docs lie."""
        return f"docs/{slug(self.pin.run, 120)}/{self.pin.epoch}/"

    def base(self) -> Release | None:
        """The release that the run is based on, None for the empty one."""
        if self.pin.base is None:
            return None
        release = self.store.read(self.environment.release(self.pin.base), Release)
        if release is None:
            raise BuscoError(f"the run's base release {self.pin.base} is gone", "clear pin: the run begins anew")
        return release

    # -- entries ------------------------------------------------------------------------------------------------

    def entries(self) -> dict[str, Entry]:
        """All entries of this epoch by table."""
        keys = list(self.store.keys(self.layout.tables))
        return {entry.table: entry for entry in self.store.read_many(keys, Entry)}

    def take(self, table: str, runner: int) -> str:
        """Puts a new token of `runner` into the table's entry (R4) and gives it; an earlier holder is fenced off.

        Raises:
            TakenAway: a runner that was started later has the entry.
        """
        token = new_id()
        key = self.layout.entry(table)
        while True:
            found = self.store.get(key)
            entry = Entry(table=table, token=token, runner=runner)
            try:
                if found is None:
                    self.store.create(key, entry)
                    return token
                if found.parse(Entry).runner > runner:
                    raise TakenAway(table)
                self.store.swap(key, entry, found.etag)
                return token
            except (AlreadyExists, Moved):
                continue

    def enter(self, table: str, token: str, version: Version, kept: bool) -> None:
        """Enters a version into the run, if `token` still stands (R4).

        Raises:
            TakenAway: it doesn't; the version stays out.
        """
        key = self.layout.entry(table)
        while True:
            found = self.store.get(key)
            entry = found.parse(Entry) if found else None
            if found is None or entry is None or entry.token != token:
                raise TakenAway(table)
            try:
                self.store.swap(key, entry.model_copy(update={"version": version, "kept": kept}), found.etag)
                return
            except Moved:
                continue

    # -- runners and results -------------------------------------------------------------------------------------

    def runners(self) -> list[Runner]:
        """The runners of this epoch so far, in order of their numbers."""
        found: list[Runner] = []
        while (runner := self.store.read(self.layout.runner(len(found) + 1), Runner)) is not None:
            found.append(runner)
        return found

    def order(self, name: str, generation: int) -> Order:
        """What a runner is to do.

        Raises:
            BuscoError: nobody has ordered it.
        """
        order = self.store.read(self.layout.order(name, generation), Order)
        if order is None:
            raise BuscoError(f"run {self.name} has no order {name}/{generation}", "runners are started by Airflow")
        return order

    def endings(self) -> dict[int, Ending]:
        """The runners of this epoch that were seen gone, by number."""
        keys = list(self.store.keys(f"{self.layout.prefix}ended-"))
        return {ending.number: ending for ending in self.store.read_many(keys, Ending)}

    def put_result(self, result: Result, log: str | None = None) -> None:
        """Writes a runner's word on a node; the log first, so that whoever sees the result finds it."""
        if log is not None:
            key = self.layout.log(result.node, result.runner)
            self.store.put(key, log.encode(), "text/plain; charset=utf-8")
        self.store.put(self.layout.result(result.node, result.runner), result)

    def results(self) -> list[Result]:
        """All results of this epoch, of every runner."""
        keys = [key for key in self.store.keys(self.layout.results) if key.endswith(".json")]
        return self.store.read_many(keys, Result)

    def latest_results(self) -> dict[str, Result]:
        """Each node's final result of the runner that was started last; not of one that was fenced off (R4)."""
        latest: dict[str, Result] = {}
        for result in self.results():
            counts = result.status in FINAL and not result.fenced
            if counts and (result.node not in latest or latest[result.node].runner < result.runner):
                latest[result.node] = result
        return latest

    def log(self, node: str, runner: int) -> str:
        stored = self.store.get(self.layout.log(node, runner))
        return stored.body.decode(errors="replace") if stored else ""


def save_pin(store: ObjectStore, environment: EnvironmentLayout, pin: Pin) -> Run:
    """Writes pin.json (If-None-Match). The epoch's first pin stands: one that is there already is taken instead,
    so that a pin task whose reply was lost goes on with what it wrote."""
    layout = RunLayout(environment.epoch(pin.run, pin.epoch))
    try:
        store.create(layout.pin, pin)
    except AlreadyExists:
        found = store.read(layout.pin, Pin)
        if found is None:
            raise BuscoError(f"pin.json of {pin.run} vanished") from None
        pin = found
    return Run(store, environment, pin)


def epochs(store: ObjectStore, environment: EnvironmentLayout, run: str) -> list[int]:
    """The epochs of a run, the newest last; the newest may have no pin yet."""
    return sorted(int(name) for name in store.folders(environment.runs(run)) if name.isdigit())


def newest_epoch(store: ObjectStore, environment: EnvironmentLayout, run: str) -> int | None:
    """The newest epoch of a run that has a pin, None where the run isn't known."""
    for epoch in reversed(epochs(store, environment, run)):
        if store.get(RunLayout(environment.epoch(run, epoch)).pin) is not None:
            return epoch
    return None


def open_run(store: ObjectStore, environment: EnvironmentLayout, run: str, epoch: int | None = None) -> Run:
    """A run's newest epoch (R1), or the one asked for.

    Raises:
        BuscoError: the run has no pin, or `epoch` is no longer its newest.
    """
    newest = newest_epoch(store, environment, run)
    if newest is None:
        raise BuscoError(
            f"there is no run {run} in environment {environment.environment}",
            "clear the run's pin task, or begin a new run",
        )
    if epoch is not None and epoch != newest:
        raise BuscoError(f"epoch {epoch} of run {run} is over: epoch {newest} has begun", "nothing is to be done")
    pin = store.read(RunLayout(environment.epoch(run, newest)).pin, Pin)
    if pin is None:
        raise BuscoError(f"pin.json of {run} vanished")
    return Run(store, environment, pin)


def visible_versions(run: Run, base: Release | None, entries: Mapping[str, Entry]) -> dict[str, Version]:
    """What the run's models read: this run's versions, else the base's; bronze as pinned."""
    versions = dict(base.tables) if base else {}
    versions.update(run.pin.bronze)
    versions.update({table: entry.version for table, entry in entries.items() if entry.version is not None})
    return versions
