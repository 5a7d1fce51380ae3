"""Decides whether a project's DAG needs a run, from the lake's records and the DAG's runs alone.

Airflow can lose or delay dataset events, so nothing here relies on them. A project needs a run if it has not published
the current deliveries, and no run with the same code was based on them. If such a run failed, no other is started until
something changes: another delivery, other code, `resume`, or a run started by hand.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from busco.lake.deliveries import Contract, current_set
from busco.lake.layout import EnvironmentLayout, RunLayout
from busco.lake.objects import ObjectStore
from busco.lake.records import Current, Pin
from busco.lake.releases import Live, history
from busco.lake.runs import newest_epoch

_UNPINNED = 3  # how many runs are started for a set if each ends before it is pinned
State = Literal["current", "due", "starting", "running", "waiting", "blocked"]


@dataclass(frozen=True)
class CurrentSet:
    """A bronze table's current set of deliveries: the ids that a version of exactly these deliveries can have, and the
    number of deliveries."""

    versions: frozenset[str]
    deliveries: int


@dataclass(frozen=True)
class Code:
    """The code that a run would be started with: the commit, and the hash of the dbt manifest."""

    version: str
    manifest_hash: str


@dataclass(frozen=True)
class RecentRun:
    """A DAG run. `ended_at` is None while it is queued or running; a run that is cleared ends at another time (UTC)."""

    run_id: str
    key: str
    ended_at: datetime | None


@dataclass(frozen=True)
class Attempt:
    """A run of a project's DAG; `pin` is None until it is pinned."""

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
            with them ended and did not publish them, or three runs ended before they were pinned), or `due` (a run has
            to be started).
        tables: for each table that differs, the number of its deliveries that are not published.
        run_id: the run that the state is about; '' if there is none.
        set_id: identifies the set of deliveries, the code, and the last hold that was lifted.
        unpinned: how many runs that were started for this set have ended before they were pinned.
    """

    state: State
    tables: Mapping[str, int]
    run_id: str = ""
    set_id: str = ""
    unpinned: int = 0


def current_sets(store: ObjectStore, contracts: Iterable[Contract]) -> dict[str, CurrentSet]:
    """Returns the current set of deliveries of each bronze table that has any."""
    found: dict[str, CurrentSet] = {}
    for contract in contracts:
        versions, deliveries = current_set(store, contract)
        if deliveries:
            found[contract.name] = CurrentSet(versions, deliveries)
    return found


def unpublished(now: Mapping[str, CurrentSet], before: Published) -> dict[str, int]:
    """Returns the tables whose current deliveries a project has not published, each with the number of deliveries."""
    return {
        table: max(1, one.deliveries - before.versions.get(table, ("", 0))[1])
        for table, one in now.items()
        if before.versions.get(table, ("", 0))[0] not in one.versions
    }


@dataclass(frozen=True)
class Published:
    """What a project's last run of all its models published.

    Attributes:
        versions: the bronze versions that it was based on, with their numbers of deliveries; none if a rollback is
            newer, which may have brought back any content.
        rolled_back: the key of the run, if a rollback is newer; otherwise ''.
        pinned_at: when the run was pinned (UTC); None if there is none, or if a rollback is newer.
        run: the key of the run; '' if there is none.
    """

    versions: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    rolled_back: str = ""
    pinned_at: datetime | None = None
    run: str = ""


NOTHING = Published()


def published(
    store: ObjectStore, environment: EnvironmentLayout, project: str, known: tuple[str, Published] = ("", NOTHING)
) -> Published:
    """Returns a project's last publish of all its models.

    Args:
        known: an earlier live release, and the result at that time; older releases are not read.
    """
    was_rolled_back = False
    for release in history(store, environment):
        if release.release == known[0]:
            return _rolled_back(known[1].run) if was_rolled_back and known[1].run else known[1]
        was_rolled_back = was_rolled_back or release.kind == "rollback"
        if release.kind != "publish" or release.project != project:
            continue
        pin = store.read(RunLayout(environment.epoch(release.run, release.epoch)).pin, Pin)
        if pin is None or pin.nodes is not None:
            continue
        if was_rolled_back:
            return _rolled_back(release.run)
        versions = {table: (version.version, version.files) for table, version in pin.bronze.items()}
        return Published(versions, pinned_at=pin.created_at, run=release.run)
    return NOTHING


def _rolled_back(run: str) -> Published:
    return Published(rolled_back=run, run=run)


@dataclass
class Publishes:
    """Each project's last publish, which is determined again only when another release has become live."""

    store: ObjectStore
    environment: EnvironmentLayout
    _known: dict[str, tuple[str, Published]] = field(default_factory=dict)

    def last(self, project: str, live: Live | None) -> Published:
        """Returns what a project published last, as of a live release."""
        if live is None:
            return NOTHING
        known = self._known.get(project, ("", NOTHING))
        if known[0] != live.release.release:
            known = (live.release.release, published(self.store, self.environment, project, known))
            self._known[project] = known
        return known[1]


def standing(
    now: Mapping[str, CurrentSet],
    before: Published,
    attempts: Iterable[Attempt],
    code: Code,
    current: Current | None,
) -> Standing:
    """Decides what a project needs.

    Args:
        now: the tables' current deliveries (`current_sets`).
        before: what the project published last.
        attempts: the runs of the project's DAGs, newest first; only as many as needed are read: those that are based
            on the current deliveries, and the newest one that is not.
        code: the code that a new run would use.
        current: the lake's pointer to the live release.
    """
    pending = unpublished(now, before)
    if not pending:
        return Standing("current", {})
    lifted = current.resumed.hold if current is not None and current.resumed is not None else None
    sets = [[table, min(one.versions)] for table, one in sorted(now.items())]
    set_id = json.dumps([sets, code.version, code.manifest_hash, str(lifted.when if lifted else "")])
    # runs that did not publish for a reason that no longer applies
    excused = set(lifted.skipped if lifted else ())
    if current is not None and current.hold is None:
        excused.add(before.rolled_back)
    active, ended = "", []
    for one in attempts:
        if one.pin is None:
            if one.active:
                return Standing("starting", pending, one.run_id, set_id)
            if one.run_id.startswith(run_prefix(set_id)):
                ended.append(one.run_id)
            continue
        active = active or (one.run_id if one.active else "")
        if one.pin.nodes is not None:
            continue
        if not _is_based_on(one.pin, now):
            break  # older runs are based on older deliveries
        if one.active:
            return Standing("running", pending, one.run_id, set_id)
        if (one.pin.code_version, one.pin.manifest_hash) != (code.version, code.manifest_hash):
            continue  # an older run may have had the present code: somebody has returned to it
        if one.key not in excused:
            return Standing("blocked", pending, one.run_id, set_id)
        break
    if active:
        return Standing("waiting", pending, active, set_id)
    if len(ended) >= _UNPINNED:
        return Standing("blocked", pending, ended[0], set_id, len(ended))
    return Standing("due", pending, "", set_id, len(ended))


def run_prefix(set_id: str) -> str:
    """Returns the beginning of the ids of the runs that are started for a set; their number follows.

    The same set and number lead to the same id, so that two services, or a retry, start one run.
    """
    return f"deliveries__{hashlib.sha256(set_id.encode()).hexdigest()[:16]}_"


def _is_based_on(pin: Pin, now: Mapping[str, CurrentSet]) -> bool:
    return all(table in pin.bronze and pin.bronze[table].version in one.versions for table, one in now.items())


def attempts_of(
    store: ObjectStore,
    environment: EnvironmentLayout,
    runs: Iterable[RecentRun],
    known: Mapping[RecentRun, Pin | None],
    read: dict[RecentRun, Pin | None],
) -> Iterator[Attempt]:
    """Yields runs with their pins, which are read one at a time.

    Args:
        runs: newest first.
        known: the pins of runs that have ended, which don't change any more.
        read: receives the pins of the runs among `runs` that have ended.
    """
    for run in runs:
        if run in known:
            pin = known[run]
        else:
            epoch = newest_epoch(store, environment, run.key)
            pin = None if epoch is None else store.read(RunLayout(environment.epoch(run.key, epoch)).pin, Pin)
        if run.ended_at is not None:
            read[run] = pin
        yield Attempt(run.run_id, run.key, run.ended_at is None, pin)
