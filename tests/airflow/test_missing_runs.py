"""How the events service starts runs that are missing, and how it reports what it can't do."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from busco.events.pending import Standing, run_prefix
from busco.lake.layout import EnvironmentLayout
from busco.lake.objects import ObjectStore
from busco.lake.records import IngestOrder, utc_now
from busco.orchestration import events
from busco.orchestration.events import Interrupted, Orders, Runs
from busco.settings import Settings
from tests.unit.memory_s3 import MemoryS3

SET = "set-1"


class Airflow:
    """Airflow's DAG runs, and the standing of two projects."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runs: dict[str, str] = {}
        self.refused: set[str] = set()
        self.standings: dict[str, Standing | Exception] = {
            name: Standing("due", {"bronze.orders": 1}, set_id=f"{SET} of {name}") for name in ("a", "b")
        }
        self.said: list[str] = []
        monkeypatch.setattr(events, "_GRACE", 0.0)
        monkeypatch.setattr(events, "scheduled_dag", lambda project: f"dag-{project}")
        monkeypatch.setattr(events, "is_queued", lambda _: False)
        monkeypatch.setattr(events, "start_run", self.start)
        monkeypatch.setattr(events, "is_active", lambda _, run_id: self.runs.get(run_id) == "running")
        monkeypatch.setattr(events, "read_live", lambda *_: None)
        settings: Any = SimpleNamespace(
            of_all_projects=lambda: [SimpleNamespace(dbt_project_dir=name) for name in self.standings]
        )
        store = ObjectStore(MemoryS3(), "lake")
        self.service = Runs(settings, store, EnvironmentLayout("prod"), self.said.append)
        monkeypatch.setattr(self.service, "standing", self.standing)

    def start(self, dag_id: str, run_id: str, _: Any) -> bool:
        if dag_id in self.refused:
            raise LookupError(f"the DAG {dag_id} was not found")
        if run_id in self.runs:
            return False
        self.runs[run_id] = "running"
        return True

    def standing(self, settings: Any, *_: Any) -> tuple[Any, Standing]:
        found = self.standings[settings.dbt_project_dir]
        if isinstance(found, Exception):
            raise found
        return SimpleNamespace(identity=settings.dbt_project_dir), found


@pytest.fixture
def airflow(monkeypatch: pytest.MonkeyPatch) -> Airflow:
    return Airflow(monkeypatch)


def first(project: str, number: int = 0) -> str:
    return f"{run_prefix(f'{SET} of {project}')}{number}"


def test_a_project_whose_run_can_not_be_started_does_not_stop_the_others(airflow: Airflow) -> None:
    airflow.refused = {"dag-a"}
    airflow.service.look()
    assert list(airflow.runs) == [first("b")]
    assert airflow.said == ["no run of a can be started: the DAG dag-a was not found"]
    airflow.refused = set()
    airflow.service.look()
    airflow.service.look()
    assert list(airflow.runs) == [first("b"), first("a")]
    assert airflow.said[1:] == [""], "the problem is over, and that is said once"


@pytest.mark.parametrize("error", [KeyError("nodes"), ValueError("a record can't be read")])
def test_a_project_whose_records_can_not_be_read_does_not_stop_the_others(airflow: Airflow, error: Exception) -> None:
    airflow.standings["a"] = error
    airflow.service.look()
    assert list(airflow.runs) == [first("b")]


def test_a_set_that_was_current_before_gets_another_run(airflow: Airflow) -> None:
    airflow.runs = {first("a"): "success", first("a", 1): "failed"}
    airflow.service.look()
    assert airflow.runs[first("a", 2)] == "running"


def test_a_run_that_another_service_has_started_is_not_started_again(airflow: Airflow) -> None:
    airflow.runs = {first("a"): "running", first("b"): "running"}
    airflow.service.look()
    assert list(airflow.runs) == [first("a"), first("b")]


def test_a_set_whose_run_has_failed_starts_nothing_for_ten_minutes(
    airflow: Airflow, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(events, "time", SimpleNamespace(monotonic=lambda: now))
    for name in ("a", "b"):
        airflow.standings[name] = Standing("blocked", {"bronze.orders": 1}, "run-1", set_id=f"{SET} of {name}")
    for _ in range(300):
        now += 2.0
        assert not airflow.service.look()
    assert airflow.runs == {}


@pytest.mark.parametrize("login", ["password", "oauth"])
def test_a_started_run_names_its_deliveries_and_needs_no_rest_api(monkeypatch: pytest.MonkeyPatch, login: str) -> None:
    """Airflow's REST API accepts only sessions if users log in through an identity provider."""
    started: list[dict[str, Any]] = []
    monkeypatch.setenv("AIRFLOW_LOGIN", login)
    monkeypatch.setattr("airflow.api.common.trigger_dag.trigger_dag", lambda dag_id, **given: started.append(given))
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("there was a request"))
    assert events.start_run("lakehouse", "run-1", {"bronze.orders": 3})
    (given,) = started
    assert (given["run_id"], given["conf"]) == ("run-1", {"new_deliveries": {"bronze.orders": 3}})


@pytest.mark.parametrize(
    ("standing", "reason"),
    [
        (Standing("current", {}), "all deliveries are published"),
        (Standing("blocked", {"bronze.orders": 1}, "run-1"), "run run-1 was based on the same deliveries"),
        (Standing("blocked", {"bronze.orders": 1}, "run-1", unpinned=3), ""),
        (Standing("due", {"bronze.orders": 1}), ""),
        (Standing("waiting", {"bronze.orders": 1}), ""),
    ],
)
def test_a_dataset_event_builds_nothing_if_all_is_published_or_blocked(
    monkeypatch: pytest.MonkeyPatch, standing: Standing, reason: str
) -> None:
    found = not_needed(monkeypatch, standing)
    assert found.startswith(reason)
    assert bool(found) is bool(reason)


@pytest.mark.parametrize(
    ("change", "uris"),
    [
        ({"run_type": "manual"}, ["busco://lake/bronze/orders"]),
        ({"run_type": "scheduled"}, ["busco://lake/bronze/orders"]),
        ({"clear_number": 1}, ["busco://lake/bronze/orders"]),
        ({}, ["busco://lake/bronze/orders", "s3://elsewhere/file"]),
    ],
)
def test_a_run_that_something_else_has_started_is_always_needed(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], uris: list[str]
) -> None:
    assert not_needed(monkeypatch, Standing("blocked", {"bronze.orders": 1}, "run-1"), change, uris) == ""


def not_needed(
    monkeypatch: pytest.MonkeyPatch,
    standing: Standing,
    change: dict[str, Any] | None = None,
    uris: Sequence[str] = ("busco://lake/bronze/orders",),
) -> str:
    """Returns why a run is not needed, if its project has this standing and its DAG is scheduled by these datasets."""
    dag_run = SimpleNamespace(dag_id="lakehouse", run_id="r", run_type="dataset_triggered", clear_number=0)
    dag_run.__dict__.update(change or {})
    schedule = [SimpleNamespace(dataset=SimpleNamespace(uri=uri)) for uri in uris]
    session = SimpleNamespace(get=lambda *_: SimpleNamespace(schedule_dataset_references=schedule))
    settings = SimpleNamespace(environment="prod", lake_bucket="lake", of_project=lambda _: None)
    monkeypatch.setattr("airflow.utils.session.create_session", lambda: nullcontext(session))
    monkeypatch.setattr(events, "get_settings", lambda: settings)
    monkeypatch.setattr(events, "client", lambda *_: MemoryS3())
    monkeypatch.setattr(events, "read_live", lambda *_: None)
    monkeypatch.setattr(Runs, "standing", lambda *_: (None, standing))
    return events.not_needed(dag_run, "", {"busco://lake/bronze/orders"})


@pytest.mark.parametrize(
    ("state", "needs"),
    [("current", False), ("starting", False), ("running", False), ("blocked", False), ("waiting", True), ("due", True)],
)
def test_a_table_needs_a_run_unless_a_release_or_an_active_run_has_its_deliveries(
    airflow: Airflow, state: Any, needs: bool
) -> None:
    airflow.standings["a"] = Standing(state, {"bronze.items": 1})
    assert ("bronze.items" in airflow.service.tables_without_run()) is needs


def test_no_run_is_started_for_a_part_of_what_is_being_loaded(airflow: Airflow) -> None:
    is_loading = True
    airflow.service.is_loading = lambda: is_loading
    for number in range(5):
        airflow.standings["a"] = Standing("due", {"bronze.orders": number}, set_id=f"part {number}")
        assert airflow.service.look(), "another look is needed soon"
    assert airflow.runs == {}
    is_loading = False
    airflow.service.look()
    assert airflow.runs == {f"{run_prefix('part 4')}0": "running", first("b"): "running"}


def test_an_order_is_being_loaded_until_it_has_ended_or_takes_very_long(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    orders = Orders(Settings(), ObjectStore(MemoryS3(), "lake"), threading.Event())

    def work(words: list[str], order: str) -> str:
        seen.append(orders.is_loading())
        monkeypatch.setattr(events, "_LONG", 0.0)
        seen.append(orders.is_loading())
        monkeypatch.undo()
        raise Interrupted("no capacity")

    monkeypatch.setattr(orders, "_run", work)
    assert not orders.is_loading()
    with pytest.raises(Interrupted):
        orders(IngestOrder(order="20260101T000000-ab", ordered_at=utc_now()))
    assert seen == [True, False]
    assert not orders.is_loading()


def test_an_order_that_takes_very_long_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_LONG", 0.05)
    said: list[str] = []
    orders = Orders(Settings(), ObjectStore(MemoryS3(), "lake"), threading.Event(), said.append)
    with orders._watched("20260101T000000-ab"):
        deadline = time.monotonic() + 10
        while not said and time.monotonic() < deadline:
            time.sleep(0.01)
    assert said == ["the order 20260101T000000-ab is still being carried out after 0 minutes; see its log", ""]
    monkeypatch.setattr(events, "_LONG", 60.0)
    with orders._watched("quick"):
        pass
    assert len(said) == 2
