"""A trigger that Airflow cancels, or whose run is over, stops its runner despite failures, and fails no other task."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest

from busco.orchestration import dag_runs, patience, polling
from busco.orchestration.dag_runs import Asked
from tests.airflow.deferred import Tasks, kind, run, until
from tests.airflow.lab import Lab, a_model
from tests.airflow.simulation import Failing

S, X = "model.p.s", "model.p.x"


@pytest.fixture(autouse=True)
def _quick() -> Iterator[None]:
    with (
        mock.patch.object(polling, "EVERY", 0.002),
        mock.patch.object(patience, "EVERY", 0.002),
        mock.patch.object(dag_runs, "_EVERY", 0.01),
    ):
        yield


@pytest.mark.parametrize("is_marked", [False, True])
def test_a_runner_is_stopped_even_if_ecs_refuses_at_first(is_marked: bool) -> None:
    async def story() -> None:
        lab = Lab(a_model("s"), slow={S: 100}, ecs=True)
        tasks = Tasks(lab)
        with tasks.here():
            s = tasks.defer(S, 1)
            await until(lambda: lab.watch.followers.get("s/1"))
            lab.s3.fault = Failing("StopTask", times=3)
            if is_marked:
                tasks.state = "failed"
            else:
                tasks.waiting.clear()
                s.cancel()
            await asyncio.wait({s})
            assert (list(lab.living), lab.stopped) == ([], [1])
            assert [kind(event) for event in tasks.events.values()] == ["TaskFailedEvent"] * is_marked

    run(story())


@pytest.mark.parametrize("is_marked", [False, True])
def test_a_runner_that_ecs_does_not_stop_has_no_effect_on_how_its_task_ends(is_marked: bool) -> None:
    async def story() -> None:
        lab = Lab(a_model("s"), slow={S: 100}, ecs=True)
        tasks = Tasks(lab)
        with tasks.here(), mock.patch.object(patience, "FAILURES", 3):
            s = tasks.defer(S, 1)
            await until(lambda: lab.watch.followers.get("s/1"))
            lab.s3.fault = Failing("StopTask")
            if is_marked:
                tasks.state = "failed"
            else:
                tasks.waiting.clear()
                s.cancel()
            await asyncio.wait({s})
            assert s.cancelled() != is_marked
            assert [kind(event) for event in tasks.events.values()] == ["TaskFailedEvent"] * is_marked

    run(story())


@pytest.mark.parametrize("becomes", ["cleared", "moved", "cleared, and the database is gone for long"])
def test_a_cancelled_trigger_ends_cancelled_whatever_happens_to_airflow_s_database(becomes: str) -> None:
    async def story() -> None:
        lab = Lab(a_model("s"), slow={S: 100}, ecs=True)
        tasks = Tasks(lab)
        with tasks.here(), mock.patch.object(patience, "FAILURES", 20):
            s = tasks.defer(S, 1)
            await until(lambda: lab.watch.followers.get("s/1"))
            tasks.down = True
            if becomes != "moved":
                tasks.waiting.clear()
            before = tasks.questions
            s.cancel()
            await until(lambda: tasks.questions >= before + 3)
            tasks.down = becomes.endswith("long")
            await asyncio.wait({s})
            assert s.cancelled(), "any other ending would fail the task that another triggerer follows"
            # nothing is stopped until it is known that the task is no longer needed (R10)
            assert bool(lab.living) == (becomes != "cleared")

    run(story())


def test_a_trigger_that_is_cancelled_repeatedly_still_stops_its_runner() -> None:
    async def story() -> None:
        lab = Lab({**a_model("s"), **a_model("x")}, last=frozenset({S}), slow={S: 100}, ecs=True)
        tasks, answers = Tasks(lab), threading.Event()

        def slowly(*arguments: Any) -> Asked:
            answers.wait(5)
            return tasks.ask(*arguments)

        with tasks.here():
            s = tasks.defer(S, 1)
            await tasks.defer(X, 2)
            lab.slow[X] = 100
            # cleared, so it has its own runner
            x = tasks.defer(X, 3, attempt=2)
            await until(lambda: lab.watch.followers == {"s/1": 1, "x/2": 2})
            with mock.patch.object(dag_runs, "ask", slowly):
                tasks.waiting.discard(1)
                for _ in range(5):
                    s.cancel()
                    await asyncio.sleep(0.005)
                answers.set()
                await asyncio.wait({s})
            assert s.cancelled()
            await until(lambda: list(lab.living) == [2])
            x.cancel()
            await asyncio.wait({x})

    run(story())


def test_tasks_that_are_cleared_together_share_database_queries_and_use_no_earlier_result() -> None:
    async def story() -> None:
        graph = {uid: node for number in range(20) for uid, node in a_model(f"m{number}").items()}
        lab = Lab(graph, slow=dict.fromkeys(graph, 100), ecs=True)
        tasks = Tasks(lab)
        with tasks.here(), mock.patch.object(dag_runs, "_EVERY", 60):
            following = [tasks.defer(node, number) for number, node in enumerate(graph)]
            await until(lambda: len(lab.watch.followers) == 20 and all(lab.watch.followers.values()))
            before = tasks.questions
            tasks.waiting.clear()
            for one in following:
                one.cancel()
            await asyncio.wait(following)
            assert tasks.questions - before < 5
            assert lab.stopped == [1], "the runner is stopped only once"

    run(story())
