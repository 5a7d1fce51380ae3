"""What on-call sees of the events: the queue, the last orders, and what each project has not published."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

from busco.aws import client
from busco.events.pending import Published
from busco.events.queue import Counts
from busco.lake.deliveries import Contract
from busco.lake.layout import INGEST, EnvironmentLayout, delivery_prefix, ingest_order, ingest_outcome, stamp
from busco.lake.objects import ObjectStore
from busco.lake.records import IngestedObject, IngestOrder, IngestOutcome, utc_now
from busco.lake.releases import read_live
from busco.orchestration.events import Runs, counted, events_queue, paused
from busco.settings import Settings
from busco.text import count

_ORDERS = 10
MOST_REFUSED = 5  # objects of an order that are named
_RECENT, _DAY = timedelta(hours=1), timedelta(days=1)
_MOST_RECENT = 200  # orders that are read to count what arrived recently
_STATES = {
    "current": "published",
    "due": "a run will start soon, unless the DAG is paused",
    "starting": "a run is starting: {run}",
    "running": "being built by run {run}",
    "waiting": "the next run starts when run {run} has ended",
    "blocked": "blocked by run {run}, which ended without publishing: read its log, then clear it or start another run",
}


@dataclass(frozen=True)
class Order:
    """An order to ingest, and what became of its objects; `outcome` is None while it is being carried out, or if it
    failed."""

    order: str
    ordered_at: datetime
    objects: int
    everything: bool
    outcome: IngestOutcome | None

    @property
    def text(self) -> str:
        if self.outcome is None:
            return "in progress, or it failed (the log of the service says why)"
        return counted(self.outcome) if self.outcome.objects else "nothing new"

    @property
    def what(self) -> str:
        return "everything without a delivery" if self.everything else count(self.objects, "object")

    @property
    def refused(self) -> list[IngestedObject]:
        """The objects that were refused."""
        return [one for one in (self.outcome.objects if self.outcome else ()) if one.outcome == "refused"]


@dataclass(frozen=True)
class ProjectStatus:
    """A project's state in words, the number of unpublished deliveries of each bronze table, and the time of the oldest
    of them (UTC; None if there is none)."""

    project: str
    state: str
    tables: dict[str, int]
    oldest: datetime | None = None

    @property
    def behind(self) -> str:
        """What the project has not published, in words; '' if it has published everything."""
        tables = ", ".join(
            f"{count(number, 'unpublished delivery', 'unpublished deliveries')} of {name}"
            for name, number in self.tables.items()
        )
        return tables + (f", the oldest from {self.oldest:%Y-%m-%d %H:%M:%S} UTC" if self.oldest else "")


@dataclass(frozen=True)
class Activity:
    """What arrived in the last hour. If there were more than 200 orders, only the newest 200 are counted (`is_all`)."""

    objects: int
    refused: int
    quarantined: int
    is_all: bool

    @property
    def text(self) -> str:
        least = "" if self.is_all else "at least "
        return (
            f"{least}{count(self.objects, 'object')} in the last hour ({self.objects / 60:.1f} a minute), "
            f"{self.refused:,} refused; {count(self.quarantined, 'row')} quarantined"
        )


@dataclass(frozen=True)
class Status:
    paused: str
    counts: Counts
    orders: Sequence[Order]
    projects: Sequence[ProjectStatus]
    activity: Activity

    @property
    def queue(self) -> str:
        return (
            f"{count(self.counts.waiting, 'message')} waiting, {self.counts.in_flight:,} being processed, "
            f"{count(self.counts.dead_letters, 'dead letter')}"
        )


def status(settings: Settings) -> Status:
    """Reads the state of the events from the queue, the lake and Airflow's database.

    Raises:
        BuscoError: no queue is configured.
    """
    runs = _runs(settings)
    names = newest_orders(runs.store, utc_now())
    return Status(
        paused=paused(),
        counts=events_queue(settings).counts(),
        orders=list(last_orders(runs.store, names)),
        projects=list(_projects(runs)),
        activity=activity(runs.store, names, utc_now()),
    )


# One for the life of the process, by settings: the page in Airflow is loaded again every few seconds, and must not list
# all deliveries each time.
_RUNS: dict[str, Runs] = {}


def _runs(settings: Settings) -> Runs:
    key = settings.model_dump_json()
    if key not in _RUNS:
        store = ObjectStore(client("s3", settings), settings.lake_bucket)
        _RUNS[key] = Runs(settings, store, EnvironmentLayout("prod"))
    return _RUNS[key]


def newest_orders(store: ObjectStore, now: datetime) -> list[str]:
    """Returns the ids of the orders of the last day, newest first; of all orders, if there are fewer than ten."""
    # ids begin with their time
    names = store.folders(INGEST, after=stamp(now - _DAY))
    if len(names) < _ORDERS:
        names = store.folders(INGEST)
    return sorted(names, reverse=True)


def activity(store: ObjectStore, names: Sequence[str], now: datetime) -> Activity:
    """Counts the objects of the orders that ended in the last hour, and their results. `names` are orders, newest
    first."""
    names = names[:_MOST_RECENT]
    with ThreadPoolExecutor(max_workers=16) as pool:
        found = list(pool.map(lambda name: store.read(ingest_outcome(name), IngestOutcome), names))
    recent = [one for one in found if one is not None and one.ended_at > now - _RECENT]
    objects = [one for outcome in recent for one in outcome.objects if one.outcome not in ("ignored", "listed")]
    return Activity(
        objects=len(objects),
        refused=sum(one.outcome == "refused" for one in objects),
        quarantined=sum(one.quarantined for one in objects if one.outcome == "ingested"),
        is_all=len(recent) < _MOST_RECENT,
    )


def last_orders(store: ObjectStore, names: Sequence[str]) -> Iterator[Order]:
    """Yields the newest orders. `names` are orders, newest first."""
    for name in names[:_ORDERS]:
        order = store.read(ingest_order(name), IngestOrder)
        if order is not None:
            outcome = store.read(ingest_outcome(name), IngestOutcome)
            yield Order(name, order.ordered_at, len(order.objects), order.everything, outcome)


def _projects(runs: Runs) -> Iterator[ProjectStatus]:
    live = read_live(runs.store, runs.environment)
    for project, found in runs.standings():
        state = _STATES[found.state].format(run=found.run_id)
        if found.state == "blocked" and live is not None and live.current.hold is not None:
            state = f"publishing is on hold, so run {found.run_id} was not published: busco release resume"
        before = runs.publishes.last(project.identity, live)
        pending = [contract for contract in project.contracts if contract.name in found.tables]
        what = ("oldest", project.identity, before.pinned_at, tuple(found.tables.items()))
        oldest = runs.listings.get(what, partial(_oldest, runs.store, pending, before)) if pending else None
        yield ProjectStatus(project.identity, state, dict(found.tables), oldest)


def _oldest(store: ObjectStore, tables: Sequence[Contract], before: Published) -> datetime | None:
    """Returns when the oldest delivery of these tables was made that a project has not published."""
    prefixes = [delivery_prefix(table.source, table.table) for table in tables]
    times = [made for prefix in prefixes for made in store.modified(prefix).values()]
    return min((made for made in times if before.pinned_at is None or made > before.pinned_at), default=None)


def lines(found: Status) -> Iterator[str]:
    """Yields the status as text."""
    if found.paused:
        yield f"paused by {found.paused}; to continue: busco events resume"
    yield f"queue: {found.queue}"
    yield f"arrived: {found.activity.text}"
    for project in found.projects:
        yield f"{project.project}: {project.state}" + (f" ({project.behind})" if project.behind else "")
    if not found.orders:
        yield "no orders to ingest in the last 30 days"
    for order in found.orders:
        yield f"{order.ordered_at:%Y-%m-%d %H:%M:%S} UTC  {order.what}: {order.text}"
        for one in order.refused[:MOST_REFUSED]:
            yield f"    refused {one.key}: {one.reason}"
        if len(order.refused) > MOST_REFUSED:
            more = len(order.refused) - MOST_REFUSED
            yield f"    and {more:,} more; see the reports in the landing bucket, below _reports/"
