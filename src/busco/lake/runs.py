"""Reads and writes the records of a run: its pin, table entries, orders, runners and results (rules R1 to R10)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from busco.errors import BuscoError
from busco.lake.formats import encode
from busco.lake.layout import EnvironmentLayout, RunLayout, new_id, slug
from busco.lake.objects import AlreadyExists, Moved, ObjectStore
from busco.lake.records import FINAL, Ending, Entry, Order, Pin, Published, Release, Result, Runner


class TakenAway(Exception):
    """Another runner now holds the table's entry, so this runner can no longer write to it (R4)."""


@dataclass(frozen=True)
class Run:
    """One epoch of a run, with its records.

    Everything that the epoch's runners share is stored below `layout.prefix`. A newer epoch is a separate `Run`.
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
        """The key prefix of the run's docs."""
        return f"docs/{slug(self.pin.run, 120)}/{self.pin.epoch}/"

    def base(self) -> Release | None:
        """Returns the release that the run is based on, or None if it started from nothing."""
        if self.pin.base is None:
            return None
        release = self.store.read(self.environment.release(self.pin.base), Release)
        if release is None:
            raise BuscoError(f"the run's base release {self.pin.base} no longer exists", "clear pin to start over")
        return release

    # -- entries ------------------------------------------------------------------------------------------------

    def entries(self) -> dict[str, Entry]:
        """Returns all entries of this epoch, by table."""
        keys = list(self.store.keys(self.layout.tables))
        return {entry.table: entry for entry in self.store.read_many(keys, Entry)}

    def take(self, table: str, runner: int) -> str:
        """Writes a new token for `runner` into a table's entry, which fences off the previous holder (R4).

        Returns:
            The token.

        Raises:
            TakenAway: a runner that was started later holds the entry.
        """
        token = new_id()
        key = self.layout.entry(table)
        while True:
            found = self.store.get(key)
            try:
                if found is None:
                    entry = Entry(table=table, token=token, runner=runner)
                    self.store.create(key, encode(self.store, entry, self.pin.format))
                    return token
                entry = found.parse(Entry)
                if entry.runner > runner:
                    raise TakenAway(table)
                taken = {"token": token, "runner": runner, "version": None, "kept": False}
                self._swap_entry(entry.model_copy(update=taken), found.etag)
                return token
            except (AlreadyExists, Moved):
                continue

    def enter(self, table: str, token: str, version: Published, kept: bool) -> None:
        """Adds a version to the table's entry, if `token` is still current (R4).

        Raises:
            TakenAway: the token is no longer current; the version is not added.
        """
        key = self.layout.entry(table)
        while True:
            found = self.store.get(key)
            entry = found.parse(Entry) if found else None
            if found is None or entry is None or entry.token != token:
                raise TakenAway(table)
            try:
                self._swap_entry(entry.model_copy(update={"version": version, "kept": kept}), found.etag)
                return
            except Moved:
                continue

    def _swap_entry(self, entry: Entry, etag: str) -> None:
        self.store.swap(self.layout.entry(entry.table), encode(self.store, entry, self.pin.format), etag)

    # -- runners and results -------------------------------------------------------------------------------------

    def runners(self) -> list[Runner]:
        """Returns this epoch's runners so far, ordered by number."""
        found: list[Runner] = []
        while (runner := self.store.read(self.layout.runner(len(found) + 1), Runner)) is not None:
            found.append(runner)
        return found

    def order(self, name: str, generation: int) -> Order:
        """Returns the order that a runner was started for.

        Raises:
            BuscoError: there is no such order.
        """
        order = self.store.read(self.layout.order(name, generation), Order)
        if order is None:
            raise BuscoError(f"run {self.name} has no order {name}/{generation}", "let Airflow start the runner")
        return order

    def endings(self) -> dict[int, Ending]:
        """Returns the endings of this epoch's runners, by runner number."""
        keys = list(self.store.keys(f"{self.layout.prefix}ended-"))
        return {ending.number: ending for ending in self.store.read_many(keys, Ending)}

    def put_result(self, result: Result, log: str | None = None) -> None:
        """Writes a runner's result for a node. The log is written first, so that it exists when the result appears."""
        if log is not None:
            key = self.layout.log(result.node, result.runner)
            self.store.put(key, log.encode(), "text/plain; charset=utf-8")
        self.store.put(self.layout.result(result.node, result.runner), result)

    def results(self) -> list[Result]:
        """Returns all results of this epoch, from all runners."""
        keys = [key for key in self.store.keys(self.layout.results) if key.endswith(".json")]
        return self.store.read_many(keys, Result)

    def latest_results(self) -> dict[str, Result]:
        """Returns each node's final result from the latest runner that has one, ignoring fenced results (R4)."""
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
    """Writes pin.json with If-None-Match and opens the run.

    If the epoch already has a pin, the existing one is used instead. So a pin task that did not receive the response to
    its write continues with the pin that it wrote.
    """
    layout = RunLayout(environment.epoch(pin.run, pin.epoch))
    try:
        store.create(layout.pin, encode(store, pin, pin.format))
    except AlreadyExists:
        found = store.read(layout.pin, Pin)
        if found is None:
            raise BuscoError(f"pin.json of {pin.run} has disappeared") from None
        pin = found
    return Run(store, environment, pin)


def epochs(store: ObjectStore, environment: EnvironmentLayout, run: str) -> list[int]:
    """Returns a run's epochs in ascending order; the newest may not have a pin yet."""
    return sorted(int(name) for name in store.folders(environment.runs(run)) if name.isdigit())


def newest_epoch(store: ObjectStore, environment: EnvironmentLayout, run: str) -> int | None:
    """Returns a run's newest epoch that has a pin, or None if there is no such run."""
    for epoch in reversed(epochs(store, environment, run)):
        if store.get(RunLayout(environment.epoch(run, epoch)).pin) is not None:
            return epoch
    return None


def open_run(store: ObjectStore, environment: EnvironmentLayout, run: str, epoch: int | None = None) -> Run:
    """Opens a run's newest epoch (R1).

    Args:
        epoch: the epoch that the caller expects to be the newest.

    Raises:
        BuscoError: the run has no pin, or `epoch` is no longer its newest.
    """
    newest = newest_epoch(store, environment, run)
    if newest is None:
        raise BuscoError(
            f"there is no run {run} in environment {environment.environment}",
            "clear the run's pin task, or start a new run",
        )
    if epoch is not None and epoch != newest:
        raise BuscoError(f"epoch {epoch} of run {run} was replaced by epoch {newest}", "no action is needed")
    pin = store.read(RunLayout(environment.epoch(run, newest)).pin, Pin)
    if pin is None:
        raise BuscoError(f"pin.json of {run} has disappeared")
    return Run(store, environment, pin)


def visible_versions(run: Run, base: Release | None, entries: Mapping[str, Entry]) -> dict[str, Published]:
    """Returns the versions that models read: the run's own, or else the base's; for bronze tables, the pinned ones."""
    versions = dict(base.tables) if base else {}
    versions.update(run.pin.bronze)
    versions.update({table: entry.version for table, entry in entries.items() if entry.version is not None})
    return versions
