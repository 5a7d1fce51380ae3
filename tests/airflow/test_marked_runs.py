"""A task whose DAG run is over, or that was cleared, stops its runner even if Airflow does not report it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import pytest
from airflow.models.base import Base
from airflow.models.dagrun import DagRun
from airflow.models.taskinstance import TaskInstance
from airflow.models.trigger import Trigger
from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker
from sqlalchemy.pool import StaticPool

from busco.lake.layout import run_key
from busco.lake.records import Order
from busco.orchestration import dag_runs, polling
from busco.orchestration.dag_runs import Asked
from busco.orchestration.launch import LocalLauncher, LocalProcess
from busco.orchestration.reaper import followed_runs
from busco.settings import Settings
from tests.airflow.deferred import Tasks, kind, run, until
from tests.airflow.lab import Lab, a_model, a_test

NOW = datetime(2026, 1, 1, tzinfo=UTC)
S, X, JOINT = "model.p.s", "model.p.x", "test.p.joint"
GRAPH = {**a_model("s"), **a_model("x"), **a_test("joint", "s", "x")}
FOLLOW = "busco.orchestration.triggers.FollowTrigger"


@pytest.fixture(autouse=True)
def _quick() -> Iterator[None]:
    with mock.patch.object(polling, "EVERY", 0.002), mock.patch.object(dag_runs, "_EVERY", 0.01):
        yield


@pytest.mark.parametrize(
    ("state", "end"),
    [("failed", "TaskFailedEvent"), ("success", "TaskSkippedEvent"), ("deleted", "TaskSkippedEvent")],
)
def test_a_task_that_still_waits_in_a_run_that_is_over_ends_and_so_does_its_runner(state: str, end: str) -> None:
    async def story() -> None:
        tasks = Tasks(Lab(GRAPH, slow={S: 100}))
        with tasks.here():
            s, joint = tasks.defer(S, 1), tasks.defer(JOINT, 2)
            await until(lambda: any(r.status == "running" for r in tasks.lab.watch.results.values()))
            tasks.state = state
            await asyncio.gather(s, joint)
            assert {name: kind(event) for name, event in tasks.events.items()} == {"s": end, "joint": end}
            assert tasks.lab.living == {}
            assert len(tasks.lab.started) == 1

    run(story())


@pytest.mark.parametrize("is_restarted", [False, True])
def test_a_task_deferred_after_its_run_was_marked_starts_no_runner_and_stops_the_current_one(
    is_restarted: bool,
) -> None:
    async def story() -> None:
        tasks = Tasks(Lab(GRAPH, slow={S: 100}))
        with tasks.here():
            s = tasks.defer(S, 1)
            await until(lambda: tasks.lab.watch.followers.get("s/1"))
            if is_restarted:
                # another triggerer takes over the task; it has not read the run's records yet
                tasks.lab.watch = tasks.lab.another_watch()
            # the model's task is marked and cancelled; meanwhile another task was deferred, which is not marked
            tasks.waiting = {2}
            s.cancel()
            await asyncio.gather(s, return_exceptions=True)
            assert tasks.lab.living, "another task of the run still seems to follow the runner"
            tasks.state = "failed"
            await tasks.defer(JOINT, 2)
            assert kind(tasks.events["joint"]) == "TaskFailedEvent"
            assert (tasks.lab.living, tasks.lab.started) == ({}, ["shared"])

    run(story())


def test_clearing_a_task_in_a_paused_dag_stops_its_runner_but_does_not_end_the_task() -> None:
    async def story() -> None:
        tasks = Tasks(Lab(GRAPH, slow={S: 100}))
        with tasks.here():
            s = tasks.defer(S, 1)
            await until(lambda: tasks.lab.watch.followers.get("s/1"))
            # Airflow cancels the trigger of a cleared task only when it schedules the task again
            tasks.waiting.clear()
            await until(lambda: not tasks.lab.living)
            assert not s.done()
            assert tasks.events == {}
            s.cancel()
            await asyncio.gather(s, return_exceptions=True)

    run(story())


def test_a_run_in_progress_is_left_alone_while_the_database_is_down() -> None:
    async def story() -> None:
        tasks = Tasks(Lab(GRAPH, slow={S: 0.3}))
        with tasks.here():
            s = tasks.defer(S, 1)
            await until(lambda: tasks.lab.living)
            tasks.down = True
            await s
            assert kind(tasks.events["s"]) == "TaskSuccessEvent"

    run(story())


def test_a_thousand_tasks_of_a_run_share_their_database_queries() -> None:
    async def story() -> None:
        tasks = Tasks(Lab(GRAPH))
        tasks.waiting = set(range(1000))
        with tasks.here(), mock.patch.object(dag_runs, "_EVERY", 0.5):
            queries = [asyncio.create_task(dag_runs.unwanted("d", "r", FOLLOW, number)) for number in range(1000)]
            await asyncio.sleep(0)
            await until(lambda: tasks.questions)
            tasks.state = "failed"
            await asyncio.gather(*queries)
            # tasks that ask while a query is running share the next one
            assert tasks.questions < 50

    run(story())


# -- what a cancelled follower leaves behind ------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["gathered", "ordered", "starting", "started"])
@pytest.mark.parametrize("others", [False, True])
def test_a_joint_test_that_is_cancelled_before_its_runner_registers_leaves_no_runner(moment: str, others: bool) -> None:
    async def story() -> None:
        lab = Lab({**GRAPH, **a_test("tj", "s", "x")}, per_model=True, joint=frozenset({JOINT}), slow={JOINT: 100})
        tasks = Tasks(lab)
        proceed, start, put = asyncio.Event(), lab.start, lab.objects.put
        reached: list[str] = []

        async def slow_start(*arguments: Any) -> Any:
            reached.append("starting")
            if moment == "starting":
                await proceed.wait()
            return await start(*arguments)

        async def slow_put(key: str, body: str, etag: str | None) -> Any:
            if key.startswith(lab.run.layout.orders):
                reached.append("ordered")
                if moment == "ordered":
                    await proceed.wait()
            return await put(key, body, etag)

        done = {
            "gathered": lambda: lab.watch._gathered,
            "ordered": lambda: "ordered" in reached,
            "starting": lambda: "starting" in reached,
            "started": lambda: lab.started,
        }
        with tasks.here(), mock.patch.object(lab, "start", slow_start), mock.patch.object(lab.objects, "put", slow_put):
            joint = tasks.defer(JOINT, 1, joint=True)
            other = tasks.defer("test.p.tj", 2, joint=True) if others else None
            await until(done[moment])
            tasks.waiting.discard(1)
            joint.cancel()
            await asyncio.gather(joint, return_exceptions=True)
            proceed.set()
            lab.slow.clear()
            if other is not None:
                await other
                assert kind(tasks.events["tj"]) == "TaskSuccessEvent", "the test that was not cancelled continues"
            else:
                # after a few more polls, no runner has started for it; one that had started may have registered by then
                for _ in range(3):
                    await asyncio.sleep(0.02)
                assert lab.run.runners() == [] or moment == "started"
            await until(lambda: not lab.living)

    run(story())


def test_a_local_runner_whose_start_is_cancelled_halfway_is_stopped(tmp_path: Path) -> None:
    async def story() -> None:
        launcher = LocalLauncher(Settings(home=tmp_path))
        proceed, begun = threading.Event(), threading.Event()
        made: list[subprocess.Popen[bytes]] = []

        def slow_start(_: list[str]) -> LocalProcess:
            begun.set()
            proceed.wait(10)
            made.append(subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE))
            return LocalProcess(made[0], tmp_path / "log")

        lab = Lab(GRAPH)
        order = Order(name="shared", generation=1, kind="shared")
        with mock.patch.object(launcher, "_start", slow_start):
            starting = asyncio.create_task(launcher.start(lab.watch.pin, order, print))
            await until(begun.is_set)
            starting.cancel()
            asyncio.get_running_loop().call_later(0.02, proceed.set)
            with pytest.raises(asyncio.CancelledError):
                await starting
        try:
            assert not psutil.pid_exists(made[0].pid)
        finally:
            made[0].kill()

    run(story())


# -- Airflow's database -----------------------------------------------------------------------------------------------


@pytest.fixture
def database(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An empty in-memory Airflow database."""
    engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    tables = [model.__table__ for model in (DagRun, TaskInstance, Trigger)]
    Base.metadata.create_all(engine, tables=tables)
    monkeypatch.setattr("airflow.settings.Session", sessionmaker(engine))
    with engine.connect() as connection:
        yield connection


def a_run(database: Any, dag: str, state: str | None, *tasks: tuple[str | None, str]) -> None:
    """Inserts a DAG run (state None: it was deleted) and its tasks, each with its state and its trigger's class."""
    if state is not None:
        database.execute(
            DagRun.__table__.insert().values(
                dag_id=dag, run_id="r", state=state, execution_date=NOW, run_type="manual", log_template_id=1
            )
        )
    for number, (task_state, classpath) in enumerate(tasks):
        trigger = None
        if classpath:
            made = database.execute(
                Trigger.__table__.insert().values(classpath=classpath, kwargs="{}", created_date=NOW)
            )
            (trigger,) = made.inserted_primary_key
        values = {
            "dag_id": dag,
            "run_id": "r",
            "task_id": f"t{number}",
            "map_index": -1,
            "state": task_state,
            "pool": "p",
        }
        database.execute(TaskInstance.__table__.insert().values(**values, pool_slots=1, trigger_id=trigger))


def test_a_sensor_that_is_not_ours_is_not_counted_as_a_follower(database: Any) -> None:
    a_run(database, "d", "running", ("deferred", FOLLOW), ("deferred", "airflow.Sensor"), ("success", FOLLOW))
    assert dag_runs.ask("d", "r", FOLLOW) == Asked("running", frozenset({1}))


def test_a_run_that_was_deleted_is_over(database: Any) -> None:
    assert dag_runs.ask("d", "r", FOLLOW).is_over
    a_run(database, "d", "queued", (None, ""))
    assert not dag_runs.ask("d", "r", FOLLOW).is_over, "it was cleared"


@pytest.mark.parametrize(
    ("state", "tasks", "is_followed"),
    [
        ("running", [("success", ""), (None, "")], True),
        ("running", [("success", ""), ("up_for_retry", "")], True),
        ("queued", [(None, "")], True),
        ("running", [("success", ""), ("skipped", "")], False),
        ("failed", [("deferred", FOLLOW)], False),
        ("failed", [(None, "")], False),
        ("success", [("success", "")], False),
    ],
)
def test_a_run_keeps_its_runner_while_it_is_in_progress_and_has_unfinished_tasks(
    database: Any, state: str, tasks: list[tuple[str | None, str]], is_followed: bool
) -> None:
    a_run(database, "d", state, *tasks)
    assert followed_runs() == ({run_key("d", "r")} if is_followed else set())
