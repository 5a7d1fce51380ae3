"""What the events service tells Airflow of an order's outcome, and how it has orders carried out."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from busco.events.consumer import OrderFailed
from busco.lake.layout import ingest_outcome
from busco.lake.objects import ObjectStore
from busco.lake.records import Ending, IngestedObject, IngestOrder, IngestOutcome, utc_now
from busco.orchestration.events import Interrupted, Orders, announce
from busco.settings import Settings
from tests.unit.memory_s3 import MemoryS3

# -- dataset events ---------------------------------------------------------------------------------------------------


class Datasets:
    """Airflow's dataset events, and the tables that need a run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: dict[str, Any] = {}
        self.needed: set[str] = set()
        self.announced = 0
        self.runs: Any = SimpleNamespace(tables_without_run=lambda: self.needed, announced=self._announced)
        monkeypatch.setattr("airflow.datasets.manager.dataset_manager", self)
        monkeypatch.setattr("airflow.utils.session.create_session", nullcontext)

    def register_dataset_change(self, *, dataset: Any, extra: Any, session: Any) -> None:
        assert dataset.uri not in self.events
        self.events[dataset.uri] = extra

    def _announced(self) -> None:
        self.announced += 1

    def announce(self, *objects: IngestedObject) -> None:
        announce(IngestOutcome(order="order-1", objects=objects, ended_at=utc_now()), self.runs)


@pytest.fixture
def datasets(monkeypatch: pytest.MonkeyPatch) -> Datasets:
    return Datasets(monkeypatch)


def ended(what: Any, table: str = "bronze.orders", key: str = "orders/a.csv", bad: int = 0) -> IngestedObject:
    return IngestedObject(key=key, version="v", etag="e", size=10, outcome=what, table=table, rows=3, quarantined=bad)


def test_each_changed_table_has_one_event_with_its_deliveries_sizes_and_etags(datasets: Datasets) -> None:
    datasets.announce(
        ended("ingested"),
        ended("ingested", key="orders/b.csv", bad=1),
        ended("ingested", "bronze.items", "items/a.csv"),
        ended("refused", "bronze.sellers"),
        ended("ignored", ""),
    )
    assert datasets.events.keys() == {"busco://lake/bronze/orders", "busco://lake/bronze/items"}
    event = datasets.events["busco://lake/bronze/orders"]
    assert (event["order"], event["deliveries"], event["rows"], event["bytes"]) == ("order-1", 2, 5, 20)
    assert event["objects"] == [
        {"key": key, "version": "v", "etag": "e", "bytes": 10, "rows": 3} for key in ("orders/a.csv", "orders/b.csv")
    ]
    assert datasets.announced == 1


def test_what_was_delivered_before_is_announced_again_only_if_it_needs_a_run(datasets: Datasets) -> None:
    datasets.announce(ended("known"))
    assert (datasets.events, datasets.announced) == ({}, 0)
    datasets.needed = {"bronze.orders"}
    datasets.announce(ended("known"), ended("known", "bronze.items", "items/a.csv"))
    assert datasets.events.keys() == {"busco://lake/bronze/orders"}
    assert datasets.announced == 1


# -- orders -----------------------------------------------------------------------------------------------------------

ORDER = IngestOrder(order="20260101T000000-ab", objects=(), everything=False, ordered_at=utc_now())


@pytest.fixture
def store() -> ObjectStore:
    return ObjectStore(MemoryS3(), "lake")


def record(store: ObjectStore) -> None:
    store.create(ingest_outcome(ORDER.order), IngestOutcome(order=ORDER.order, objects=(), ended_at=utc_now()))


def test_an_order_whose_outcome_is_recorded_is_not_carried_out_again(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders, started = Orders(Settings(), store, threading.Event()), list[str]()

    def run(_: Any, order: str) -> str:
        started.append(order)
        record(store)
        return ""

    monkeypatch.setattr(orders, "_run", run)
    assert orders(ORDER) == orders(ORDER)
    assert started == [ORDER.order]


def test_a_process_without_an_outcome_is_a_failure_unless_the_service_is_stopping(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders = Orders(Settings(), store, threading.Event())
    monkeypatch.setattr(orders, "_run", lambda *_: "exit status -9: the end of its output")
    with pytest.raises(OrderFailed, match="exit status -9: the end of its output"):
        orders(ORDER)
    orders.stop.set()
    with pytest.raises(Interrupted):
        orders(ORDER)


class Ecs:
    """ECS tasks of the dbt image, by their tokens."""

    def __init__(self, store: ObjectStore, *ends: str) -> None:
        self.store, self.ends = store, list(ends)
        self.tokens: list[str] = []
        self.words: list[str] = []

    async def start_command(self, words: list[str], token: str, *_: Any) -> Any:
        self.words = words
        self.tokens.append(token)
        if self.ends[0] == "no answer":
            self.ends.pop(0)
            raise OSError("the answer was lost")
        return SimpleNamespace(arn="task")

    async def end_of(self, _: Any) -> Ending:
        end = self.ends.pop(0)
        if end == "done":
            record(self.store)
        return Ending(number=0, reason=end, passing=end == "reclaimed")

    async def output(self, _: str) -> str:
        return "its output"


def test_a_task_is_started_once_although_answers_are_lost_and_again_after_it_was_reclaimed(store: ObjectStore) -> None:
    ecs = Ecs(store, "no answer", "reclaimed", "no answer", "done")
    orders = Orders(Settings(execution="ecs_shared"), store, threading.Event())
    orders._launcher = ecs
    with pytest.raises(OSError, match="the answer was lost"):
        orders(ORDER)
    with pytest.raises(Interrupted, match="reclaimed"):
        orders(ORDER)
    with pytest.raises(OSError, match="the answer was lost"):
        orders(ORDER)
    assert orders(ORDER).order == ORDER.order
    assert ecs.words == ["ingest", "--order", ORDER.order]
    # ECS starts one task for a token
    first, same, second, same_as_second = ecs.tokens
    assert (first, second) == (same, same_as_second)
    assert first != second


def test_a_task_that_fails_for_good_shows_its_output(store: ObjectStore) -> None:
    orders = Orders(Settings(execution="ecs_shared"), store, threading.Event())
    orders._launcher = Ecs(store, "exit status 1")
    with pytest.raises(OrderFailed, match="exit status 1.*its output"):
        orders(ORDER)
