"""Decides whether a project's DAG needs a run, from the lake's records and the DAG's runs alone.

Airflow can lose or delay dataset events, so what starts a run is only a hint: a run is needed for a set of deliveries
that the project has not published and that no run with the same code has been based on. A set whose run failed waits
for something new: another delivery, other code, `resume`, or a run started by hand.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from busco.lake.deliveries import Contract, current_set
from busco.lake.layout import EnvironmentLayout, RunLayout
from busco.lake.objects import ObjectStore
from busco.lake.records import Current, Pin, Release
from busco.lake.releases import history
from busco.lake.runs import newest_epoch

State = Literal["current", "due", "starting", "running", "waiting", "blocked"]


@dataclass(frozen=True)
class Wanted:
    """A bronze table's current set of deliveries: the ids of the versions that consist of it, and their number."""

    versions: frozenset[str]
    deliveries: int


@dataclass(frozen=True)
class Code:
    """The code that a run would be started with: the commit, and the hash of the dbt manifest."""

    version: str
    manifest_hash: str


@dataclass(frozen=True)
class Try:
    """A run of the project's DAG; `pin` is None until it is pinned."""

    run_id: str
    key: str
    active: bool
    pin: Pin | None


@dataclass(frozen=True)
class Standing:
    """Whether a project has published the current deliveries.

    Attributes:
        state: `current` (published), `starting` (a run exists that is not pinned yet), `running` (a run is based on the
            current deliveries), `waiting` (a run that is based on older deliveries has to end first), `blocked` (a run
            with them ended and did not publish them), or `due` (a run has to be started).
        tables: for each table that differs, the number of its deliveries that are not published.
        run_id: the run that the state is about; '' if there is none.
        mark: identifies the set of deliveries.
    """

    state: State
    tables: Mapping[str, int]
    run_id: str = ""
    mark: str = ""


def wanted(store: ObjectStore, contracts: Iterable[Contract]) -> dict[str, Wanted]:
    """Returns the current set of deliveries of each bronze table that has any."""
    found: dict[str, Wanted] = {}
    for contract in contracts:
        versions, deliveries = current_set(store, contract)
        if deliveries:
            found[contract.name] = Wanted(versions, deliveries)
    return found


def published(store: ObjectStore, environment: EnvironmentLayout, project: str) -> dict[str, tuple[str, int]]:
    """Returns the bronze versions that a project's last whole publish was based on, with their numbers of deliveries.

    The result is empty if the project has published nothing, or if a rollback is newer.
    """
    for release in history(store, environment):
        if release.kind == "rollback":
            return {}
        pin = _pin(store, environment, release) if release.project == project else None
        if pin is not None and pin.nodes is None:
            return {table: (version.version, version.files) for table, version in pin.bronze.items()}
    return {}


def _pin(store: ObjectStore, environment: EnvironmentLayout, release: Release) -> Pin | None:
    return store.read(RunLayout(environment.epoch(release.run, release.epoch)).pin, Pin)


def newest_pin(store: ObjectStore, environment: EnvironmentLayout, key: str) -> Pin | None:
    """Returns the pin of a run's newest epoch, or None if the run is not pinned yet."""
    epoch = newest_epoch(store, environment, key)
    return None if epoch is None else store.read(RunLayout(environment.epoch(key, epoch)).pin, Pin)


def standing(
    now: Mapping[str, Wanted],
    before: Mapping[str, tuple[str, int]],
    tries: Iterable[Try],
    code: Code,
    current: Current | None,
) -> Standing:
    """Decides what a project needs.

    Args:
        now: the tables' current deliveries (`wanted`).
        before: the versions that the project published last (`published`).
        tries: the runs of the project's DAGs, newest first; only as many as needed are read.
        current: the lake's pointer to the live release.
    """
    pending = {
        table: max(1, one.deliveries - before.get(table, ("", 0))[1])
        for table, one in now.items()
        if before.get(table, ("", 0))[0] not in one.versions
    }
    if not pending:
        return Standing("current", {})
    mark = " ".join(f"{table}={min(one.versions)}" for table, one in sorted(now.items()))
    lifted = current.resumed.hold.skipped if current is not None and current.resumed is not None else ()
    active = ""
    for one in tries:
        if one.pin is None:
            if one.active:
                return Standing("starting", pending, one.run_id, mark)
            continue
        active = active or (one.run_id if one.active else "")
        if one.pin.nodes is not None:
            continue
        if _is_based_on(one.pin, now):
            if one.active:
                return Standing("running", pending, one.run_id, mark)
            same_code = (one.pin.code_version, one.pin.manifest_hash) == (code.version, code.manifest_hash)
            if same_code and one.key not in lifted:
                return Standing("blocked", pending, one.run_id, mark)
        break  # older runs are based on older deliveries
    return Standing("waiting" if active else "due", pending, active, mark)


def _is_based_on(pin: Pin, now: Mapping[str, Wanted]) -> bool:
    return all(table in pin.bronze and pin.bronze[table].version in one.versions for table, one in now.items())


def tries_of(
    store: ObjectStore, environment: EnvironmentLayout, runs: Sequence[tuple[str, str, bool]]
) -> Iterable[Try]:
    """Yields runs with their pins, which are read one at a time.

    Args:
        runs: run id, run key, and whether the run is queued or running; newest first.
    """
    for run_id, key, active in runs:
        yield Try(run_id, key, active, newest_pin(store, environment, key))
