"""What `busco events status` and the page about new objects count."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from busco.events.pending import NOTHING, Standing
from busco.events.queue import Counts
from busco.lake.layout import INGEST, ingest_outcome
from busco.lake.objects import ObjectStore
from busco.lake.records import IngestedObject, IngestOutcome
from busco.orchestration import events_status
from busco.orchestration.events_status import Activity, Status, activity, lines
from busco.settings import Settings
from tests.unit.memory_s3 import MemoryS3

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


def ordered(store: ObjectStore, ended: datetime, *objects: tuple[str, int]) -> None:
    """Writes the outcome of an order that ended at this time: each object's outcome and its quarantined rows."""
    order = f"{ended:%Y%m%dT%H%M%S}.abc"
    made = [
        IngestedObject(key=f"k{n}", version="", etag="e", size=1, outcome=outcome, rows=9, quarantined=rows)  # type: ignore[arg-type]
        for n, (outcome, rows) in enumerate(objects)
    ]
    store.create(ingest_outcome(order), IngestOutcome(order=order, objects=tuple(made), ended_at=ended))


def newest(store: ObjectStore) -> list[str]:
    return sorted(store.folders(INGEST), reverse=True)


def test_only_the_last_hour_is_counted_and_what_is_no_delivery_is_left_out() -> None:
    store = ObjectStore(MemoryS3(), "lake")
    ordered(store, NOW - timedelta(minutes=61), ("ingested", 5), ("refused", 0))
    ordered(store, NOW - timedelta(minutes=59), ("ingested", 2), ("known", 2), ("ignored", 0), ("listed", 0))
    ordered(store, NOW - timedelta(minutes=1), *[("ingested", 1)] * 57, ("refused", 0))
    store.create("_lake/ingest/20260101T115959.in-progress/order.json", b"{}")
    found = activity(store, newest(store), NOW)
    assert found == Activity(objects=60, refused=1, quarantined=59, is_all=True)
    assert found.text == "60 objects in the last hour (1.0 a minute), 1 refused; 59 rows quarantined"


def test_with_too_many_orders_only_the_newest_are_counted() -> None:
    store = ObjectStore(MemoryS3(), "lake")
    for number in range(events_status._MOST_RECENT + 1):
        ordered(store, NOW - timedelta(seconds=number), ("ingested", 0))
    found = activity(store, newest(store), NOW)
    assert (found.objects, found.is_all) == (200, False)
    assert found.text.startswith("at least 200 objects in the last hour")


@pytest.mark.parametrize(
    ("state", "held", "said"),
    [
        ("blocked", False, "blocked by run run-7, which ended without publishing: read its log"),
        ("blocked", True, "publishing is on hold, so run run-7 was not published: busco release resume"),
        ("running", False, "being built by run run-7"),
        ("waiting", False, "the next run starts when run run-7 has ended"),
    ],
)
def test_the_status_names_the_run_that_deliveries_wait_for(
    monkeypatch: pytest.MonkeyPatch, state: Any, held: bool, said: str
) -> None:
    live = SimpleNamespace(current=SimpleNamespace(hold="by ana" if held else None))
    monkeypatch.setattr(events_status, "read_live", lambda *_: live)
    project = SimpleNamespace(identity="busco", contracts=())
    runs: Any = SimpleNamespace(
        store=None,
        environment=None,
        standings=lambda: [(project, Standing(state, {"bronze.orders": 2}, "run-7"))],
        publishes=SimpleNamespace(last=lambda *_: NOTHING),
    )
    counts, quiet = Counts(waiting=1, in_flight=2, dead_letters=3), Activity(0, 0, 0, is_all=True)
    found = Status("ana: maintenance", counts, [], list(events_status._projects(runs)), quiet)
    paused, queue, _, project_line, _ = lines(found)
    assert paused == "paused by ana: maintenance; to continue: busco events resume"
    assert queue == "queue: 1 message waiting, 2 being processed, 3 dead letters"
    assert project_line.startswith(f"busco: {said}")
    assert project_line.endswith("(2 unpublished deliveries of bronze.orders)")


def test_a_page_that_is_loaded_again_lists_the_deliveries_only_once() -> None:
    first = events_status._runs(Settings(lake_bucket="lake-1"))
    assert events_status._runs(Settings(lake_bucket="lake-1")) is first
    assert events_status._runs(Settings(lake_bucket="lake-2")) is not first


def test_orders_of_the_last_day_are_listed_and_all_if_they_are_few() -> None:
    store = ObjectStore(MemoryS3(), "lake")
    for number in range(9):
        ordered(store, NOW - timedelta(minutes=number), ("ingested", 0))
    for day in range(2, 5):
        ordered(store, NOW - timedelta(days=day), ("ingested", 0))
    assert len(events_status.newest_orders(store, NOW)) == 12
    ordered(store, NOW - timedelta(minutes=10), ("ingested", 0))
    found = events_status.newest_orders(store, NOW)
    assert len(found) == 10
    assert found == sorted(found, reverse=True)
