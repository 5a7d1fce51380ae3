"""What on-call sees of the events: the queue, the last orders, and what each project has not published."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from busco.aws import client
from busco.events.queue import Counts
from busco.lake.layout import INGEST, EnvironmentLayout, ingest_order, ingest_outcome
from busco.lake.objects import ObjectStore
from busco.lake.records import IngestOrder, IngestOutcome
from busco.lake.releases import read_live
from busco.orchestration.events import Runs, counted, events_queue, paused
from busco.settings import Settings
from busco.text import count

_ORDERS = 10
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


@dataclass(frozen=True)
class ProjectStatus:
    """A project's state in words, and the number of pending deliveries of each bronze table."""

    project: str
    state: str
    tables: dict[str, int]


@dataclass(frozen=True)
class Status:
    paused: str
    counts: Counts
    orders: Sequence[Order]
    projects: Sequence[ProjectStatus]


def status(settings: Settings) -> Status:
    """Reads the state of the events from the queue, the lake and Airflow's database.

    Raises:
        BuscoError: no queue is configured.
    """
    store, environment = ObjectStore(client("s3", settings), settings.lake_bucket), EnvironmentLayout("prod")
    return Status(
        paused=paused(),
        counts=events_queue(settings).counts(),
        orders=list(last_orders(store)),
        projects=list(_projects(Runs(settings, store, environment))),
    )


def last_orders(store: ObjectStore, most: int = _ORDERS) -> Iterator[Order]:
    """Yields the newest orders, newest first. Their ids begin with their time."""
    for name in sorted(store.folders(INGEST), reverse=True)[:most]:
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
        yield ProjectStatus(project.identity, state, dict(found.tables))


def lines(found: Status) -> Iterator[str]:
    """Yields the status as text."""
    if found.paused:
        yield f"paused by {found.paused}; to continue: busco events resume"
    yield (
        f"queue: {count(found.counts.waiting, 'message')} waiting, {found.counts.in_flight:,} being processed, "
        f"{count(found.counts.dead_letters, 'dead letter')}"
    )
    for project in found.projects:
        tables = ", ".join(
            f"{count(number, 'unpublished delivery', 'unpublished deliveries')} of {name}"
            for name, number in project.tables.items()
        )
        yield f"{project.project}: {project.state}" + (f" ({tables})" if tables else "")
    if not found.orders:
        yield "no orders to ingest in the last 30 days"
    for order in found.orders:
        what = "everything without a delivery" if order.everything else count(order.objects, "object")
        yield f"{order.ordered_at:%Y-%m-%d %H:%M:%S} UTC  {what}: {order.text}"
        refused = [one for one in (order.outcome.objects if order.outcome else ()) if one.outcome == "refused"]
        for one in refused[:5]:
            yield f"    refused {one.key}: {one.reason}"
        if len(refused) > 5:
            yield f"    and {len(refused) - 5:,} more; see the reports in the landing bucket, below _reports/"
