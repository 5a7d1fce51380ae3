"""Describes what happened in one epoch of a run, in the order in which the records were written.

Few records contain a time, since no rule of the protocol depends on a clock. The times here are those at which S3
stored each record (LastModified): they come from one clock and have a resolution of one second.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from busco.errors import BuscoError
from busco.lake.layout import EnvironmentLayout, RunLayout
from busco.lake.objects import ObjectStore
from busco.lake.records import (
    DOCS_NODE,
    FINAL,
    GOOD,
    RUNNER_NODE,
    Ending,
    Entry,
    Follower,
    Heartbeat,
    LakeRecord,
    Order,
    Pin,
    Result,
    Runner,
)
from busco.lake.releases import history, read_live
from busco.lake.runs import Run, epochs, newest_epoch
from busco.text import count

_Kind = TypeVar("_Kind", bound=LakeRecord)

_NAMED = 3  # how many nodes a sentence lists by name; the rest are only counted
# The order of events within the same second: a cause comes before its effects.
_ORDER_OF_KINDS = ("pinned", "ordered", "registered", "result", "followed", "ended", "published")


@dataclass(frozen=True)
class Event:
    """One thing that happened.

    Attributes:
        at: when it happened (UTC).
        kind: one of pinned, ordered, registered, result, followed, ended and published.
        text: one line that describes the event.
        status: the status of a result, or `error` if a runner ended without reporting success; empty for an event that
            is neither good nor bad.
        node: the dbt unique id of a result's node.
    """

    at: datetime
    kind: str
    text: str
    status: str = ""
    node: str = ""

    @property
    def failed(self) -> bool:
        return self.status in ("failed", "error")


@dataclass(frozen=True)
class Story:
    """One epoch of a run.

    Attributes:
        epochs: all epochs of the run.
        events: oldest first.
        now: sentences that say what the run is doing now, what it is waiting for, or how it ended.
    """

    pin: Pin
    epochs: tuple[int, ...]
    events: tuple[Event, ...]
    now: tuple[str, ...]


def read_story(store: ObjectStore, environment: EnvironmentLayout, run: str, epoch: int | None, now: datetime) -> Story:
    """Reads the story of a run.

    Args:
        run: the run's key.
        epoch: the epoch to read; None for the newest one with a pin.
        now: the current time (UTC), used to compute ages.

    Raises:
        BuscoError: the run has no such epoch.
    """
    known = tuple(epochs(store, environment, run))
    number = newest_epoch(store, environment, run) if epoch is None else epoch
    pin = None if number is None else store.read(RunLayout(environment.epoch(run, number)).pin, Pin)
    if pin is None:
        listed = ", ".join(map(str, known)) or "none"
        which = f"epoch {epoch} of run {run}" if epoch else f"run {run}"
        raise BuscoError(f"{which} does not exist or was never pinned", f"the run's epochs are: {listed}")
    return _Reader(Run(store, environment, pin), known, now).story()


class _Reader:
    def __init__(self, run: Run, known: tuple[int, ...], now: datetime) -> None:
        self.run, self.known, self.now = run, known, now
        self.layout = run.layout
        self.times = run.store.modified(self.layout.prefix)
        self.orders = self._records("orders/", Order)
        self.runners = {one.number: (at, one) for at, one in self._records("runner-", Runner)}
        self.endings = {one.number: (at, one) for at, one in self._records("ended-", Ending)}
        self.beats = {one.number: at for at, one in self._records("heartbeat-", Heartbeat)}
        self.results = self._records("results/", Result)
        self.followers = self._records("followers/", Follower)
        self.entries = [entry for _, entry in self._records("tables/", Entry)]
        self.releases = list(history(run.store, run.environment))
        self.live = read_live(run.store, run.environment)

    def _records(self, folder: str, kind: type[_Kind]) -> list[tuple[datetime, _Kind]]:
        """Returns the records whose keys begin with `folder`, each with the time at which it was stored."""
        begin = f"{self.layout.prefix}{folder}"
        keys = [key for key in self.times if key.startswith(begin) and key.endswith(".json")]
        found = self.run.store.read_many(keys, kind)
        return [(self.times[key], record) for key, record in zip(keys, found, strict=True)]

    def story(self) -> Story:
        events = [self._pinned(), *self._ordered(), *self._registered(), *self._reported(), *self._followed()]
        events += [*self._ended(), *self._published()]
        events.sort(key=lambda one: (one.at, _ORDER_OF_KINDS.index(one.kind)))
        return Story(self.run.pin, self.known, tuple(events), tuple(self._now()))

    # -- events -------------------------------------------------------------------------------------------------------

    def _pinned(self) -> Event:
        pin = self.run.pin
        deliveries = sum(version.files for version in pin.bronze.values())
        rows = sum(version.rows for version in pin.bronze.values())
        selected = (
            f"the selection {pin.select!r} ({count(len(pin.nodes), 'node')})" if pin.nodes is not None else "everything"
        )
        base = f"based on release {pin.base}" if pin.base else "without a base release"
        text = f"pinned, {base}: {count(deliveries, 'delivery', 'deliveries')}, {rows:,} source rows; builds {selected}"
        return Event(self.times.get(self.layout.pin, pin.created_at), "pinned", text)

    def _ordered(self) -> list[Event]:
        return [Event(at, "ordered", f"{_name(order)} requested {_purpose(order)}") for at, order in self.orders]

    def _registered(self) -> list[Event]:
        return [
            Event(at, "registered", f"runner {runner.number} started{_by(runner)}: {_place(runner)}")
            for at, runner in self.runners.values()
        ]

    def _reported(self) -> list[Event]:
        return [
            Event(at, "result", _outcome(result), "" if result.fenced else result.status, result.node)
            for at, result in self.results
            if result.status in FINAL
        ]

    def _followed(self) -> list[Event]:
        return [
            Event(at, "followed", f"task {one.task}, try {one.attempt}, used the result of runner {one.runner}")
            for at, one in self.followers
            if one.runner and one.attempt > 1
        ]

    def _ended(self) -> list[Event]:
        found = []
        for at, ending in self.endings.values():
            hint = f" ({ending.hint})" if ending.hint else ""
            status = "" if self._finished(ending) else "error"
            found.append(Event(at, "ended", f"runner {ending.number} ended: {ending.reason}{hint}", status))
        return found

    def _finished(self, ending: Ending) -> bool:
        """Returns whether a runner reported success before it ended; if not, it failed or was lost."""
        own = (result for _, result in self.results if result.node == RUNNER_NODE and result.runner == ending.number)
        return any(result.status in GOOD for result in own)

    def _published(self) -> list[Event]:
        mine = [one for one in self.releases if (one.run, one.epoch) == (self.run.pin.run, self.run.pin.epoch)]
        found = []
        for release in reversed(mine):
            if release.kind == "publish":
                text = f"published as {release.release} by {release.who}: {count(len(release.built), 'table')} built"
                dropped = f", dropped {', '.join(release.dropped)}" if release.dropped else ""
                found.append(Event(release.created_at.replace(microsecond=0), "published", text + dropped))
        return found

    # -- now ----------------------------------------------------------------------------------------------------------

    def _now(self) -> list[str]:
        if self.known and self.known[-1] > self.run.pin.epoch:
            return [f"epoch {self.known[-1]} has replaced this epoch, because the pin task ran again"]
        lines = self._release()
        if lines:
            return lines
        return [*self._working(), *self._waiting(), *self._failed(), *self._next()]

    def _release(self) -> list[str]:
        """Returns sentences about the release that the run was published as; empty if it was not published."""
        mine = (self.run.pin.run, self.run.pin.epoch)
        position = next(
            (n for n, one in enumerate(self.releases) if one.kind == "publish" and (one.run, one.epoch) == mine), None
        )
        if position is None or self.live is None:
            return []
        release = self.releases[position]
        if position == 0:
            return [f"the run is published: {release.release} is live"]
        rolled = [one for one in self.releases[:position] if one.kind == "rollback"]
        if self.live.release.rolled_back_to == release.release:
            return [f"the run was published, and rollback {self.live.release.release} made it live again"]
        by = f"rolled back by {rolled[-1].release}" if rolled else f"replaced by {self.releases[position - 1].release}"
        return [f"the run was published as {release.release}, which was {by}"]

    def _alive(self) -> list[Runner]:
        """Returns the runners that have not reported their own end and have no ending record."""
        own = {one.runner for _, one in self.results if one.node == RUNNER_NODE and one.status in FINAL}
        over = own | self.endings.keys()
        return [runner for number, (_, runner) in sorted(self.runners.items()) if number not in over]

    def _working(self) -> list[str]:
        lines = []
        for runner in self._alive():
            nodes = sorted(
                _short(result.node)
                for _, result in self.results
                if (result.runner, result.status) == (runner.number, "running") and result.node != RUNNER_NODE
            )
            at = f"is working on {_listed(nodes)}" if nodes else "reports no node in progress"
            beat = self.beats.get(runner.number)
            heard = f"its last heartbeat was {_age(self.now, beat)} ago" if beat else "it has sent no heartbeat"
            lines.append(f"runner {runner.number} {at}; {heard}")
        return lines

    def _waiting(self) -> list[str]:
        registered = {(runner.order, runner.generation) for _, runner in self.runners.values()}
        newest = {order.name: (at, order) for at, order in sorted(self.orders, key=lambda one: one[1].generation)}
        return [
            f"the runner that {_name(order)} requested {_age(self.now, at)} ago has not started: it is waiting for a "
            "slot, is being started, or could not start; the task's log in Airflow says which"
            for at, order in newest.values()
            if (order.name, order.generation) not in registered
        ]

    def _failed(self) -> list[str]:
        latest = self.run.latest_results()
        bad = sorted(
            _short(node) for node, one in latest.items() if one.status in ("failed", "error") and node != RUNNER_NODE
        )
        skipped = sum(one.status == "skipped" for one in latest.values())
        lines = [f"failed: {_listed(bad)}"] if bad else []
        if skipped:
            lines.append(f"{count(skipped, 'node')} skipped because of failures upstream")
        unfinished = sorted(entry.table for entry in self.entries if entry.version is None)
        if unfinished and not self._alive():
            lines.append(f"started but not finished: {_listed(unfinished)}")
        return lines

    def _next(self) -> list[str]:
        hold = self.live.current.hold if self.live else None
        if hold is not None and self.run.pin.run in hold.skipped:
            return [
                f"not published: {hold.who} put publishing on hold at {hold.when:%Y-%m-%d %H:%M} UTC: {hold.reason}"
            ]
        if self._alive():
            return []
        if not self.orders and not self.runners:
            return ["no task has requested a runner yet"]
        return [
            "not published, and no runner is working: wait for the next task in Airflow, or clear the one that failed"
        ]


def _name(order: Order) -> str:
    """Returns who requested a runner."""
    if order.task:
        return f"task {order.task}, try {order.attempt},"
    return "the run"


def _purpose(order: Order) -> str:
    again = f", generation {order.generation}" if order.generation > 1 else ""
    size = f" of size {order.size}" if order.size else ""
    if order.kind == "shared":
        return f"a shared runner{size} for everything without a result{again}"
    nodes = _listed(sorted(map(_short, order.nodes)))
    return f"a runner{size} {f'to build {nodes} again' if order.rebuild else f'for {nodes}'}{again}"


def _by(runner: Runner) -> str:
    if not runner.order:
        return " from a shell"
    return f" for {runner.task}, try {runner.attempt}" if runner.task else f" ({runner.order})"


def _place(runner: Runner) -> str:
    return f"ECS task {runner.arn}" if runner.arn else f"process {runner.pid} on {runner.host}"


def _outcome(result: Result) -> str:
    if result.node == RUNNER_NODE:
        return f"runner {result.runner} reported {result.status}{f': {result.message}' if result.message else ''}"
    late = ", ignored because another runner had taken over the node" if result.fenced else ""
    rows = f", {result.rows:,} rows" if result.rows is not None else ""
    detail = "kept" if result.kept else result.message
    text = f"{_short(result.node)}: {result.status}{f' ({detail})' if detail else ''}{rows}"
    return f"{text}, {result.seconds:.1f} s, runner {result.runner}{late}"


def _short(node: str) -> str:
    """Returns `model fct_orders` for `model.busco.fct_orders`, and tests without the hash at the end of their ids.

    Other ids, such as `docs`, are returned unchanged.
    """
    parts = node.split(".", 2)
    if len(parts) < 3:
        return node
    kind, name = parts[0].replace("_", " "), parts[2]
    return f"{kind} {name.rsplit('.', 1)[0] if kind == 'test' else name}"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _age(now: datetime, then: datetime) -> str:
    seconds = max(0, round((now - then).total_seconds()))
    if seconds < 120:
        return f"{seconds} s"
    return f"{seconds // 60} min" if seconds < 7200 else f"{seconds // 3600} h"


def shortened(events: Iterable[Event]) -> list[Event]:
    """Returns the events, with each series of successes condensed into one line, for runs with many nodes."""
    made: list[Event] = []
    series: list[Event] = []

    def close() -> None:
        if len(series) > _NAMED:
            kinds = Counter(event.node.split(".", 1)[0].replace("_", " ") for event in series)
            counted = ", ".join(count(number, kind) for kind, number in sorted(kinds.items()))
            made.append(
                Event(
                    series[-1].at,
                    "result",
                    f"since {series[0].at:%H:%M:%S}, these have succeeded: {counted}",
                    "success",
                )
            )
        else:
            made.extend(series)
        series.clear()

    for event in events:
        if event.kind == "result" and event.status == "success" and event.node not in (RUNNER_NODE, DOCS_NODE):
            series.append(event)
        else:
            close()
            made.append(event)
    close()
    return made
