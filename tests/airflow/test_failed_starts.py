"""Runners that end before they register: which tasks fail because of it, and how many more runners are started."""

from __future__ import annotations

import asyncio
from typing import Any
from unittest import mock

import pytest

from busco.lake.records import Order
from busco.orchestration.follow import Ended
from tests.airflow.lab import Lab, a_model
from tests.airflow.simulation import simulate

A, B = "model.p.a", "model.p.b"


def begun(lab: Lab, *nodes: str, **more: Any) -> asyncio.Task[Ended]:
    return asyncio.create_task(lab.follow(*nodes, **more))


# -- a start that was abandoned ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("ecs", [False, True])
@pytest.mark.parametrize("later", [0.0, 0.1, 1.0, 30.0])
def test_a_task_that_was_cleared_while_its_runner_was_starting_gets_another_one(ecs: bool, later: float) -> None:
    async def story() -> None:
        lab = Lab(a_model("a"), ecs=ecs, pending=lambda _: 3)
        a = begun(lab, A)
        while not lab.watch.launched:
            await asyncio.sleep(0.01)
        await lab.clear(a, "a/1")
        await asyncio.sleep(later)
        ended = await lab.follow(A, attempt=2)
        assert ended.state == "success", ended.text
        assert lab.started == ["shared", "shared"]

    simulate(story())


def test_a_task_that_is_cleared_while_its_abandoned_runner_is_being_stopped_gets_another_one() -> None:
    async def story() -> None:
        lab = Lab(a_model("a"), pending=lambda _: 30)
        a = begun(lab, A)
        while not lab.watch.launched:
            await asyncio.sleep(0.01)
        handle = lab.watch.launched["shared"].handle

        async def slowly(reason: str) -> None:
            # a process has ten seconds to exit by itself
            await asyncio.sleep(8)
            lab._kill(1)

        with mock.patch.object(handle, "stop", slowly):
            clearing = asyncio.create_task(lab.clear(a, "a/1"))
            await asyncio.sleep(2)
            ended = await lab.follow(A, attempt=2)
            await clearing
        assert ended.state == "success", ended.text

    simulate(story())


def test_a_task_can_be_cleared_any_number_of_times_while_its_runner_is_pending() -> None:
    async def story() -> None:
        lab = Lab(a_model("a"), ecs=True, passing=True, pending=lambda _: 3)
        for attempt in range(1, 8):
            a = begun(lab, A, attempt=attempt)
            await asyncio.sleep(2.5)
            assert not a.done(), a.result().text
            await lab.clear(a, f"a/{attempt}")
        assert (await lab.follow(A, attempt=8)).state == "success"

    simulate(story())


def test_runners_that_registered_before_they_were_lost_do_not_count_as_failed_starts() -> None:
    async def story() -> None:
        lab = Lab(a_model("a"), ecs=True, passing=True, slow={A: 100})
        a = begun(lab, A, restarts=10)
        for number in range(1, 5):
            while lab.watch.followers.get("a/1") != number:
                await asyncio.sleep(0.1)
            lab._kill(number)
        lab.slow.clear()
        lab.pending = lambda _: 30
        while len(lab.started) < 5:
            await asyncio.sleep(0.1)
        lab._kill(5)
        lab.pending = lambda _: 0.01
        ended = await a
        assert ended.state == "success", ended.text

    simulate(story())


def test_a_start_that_keeps_failing_is_given_up() -> None:
    async def story() -> None:
        lab = Lab(a_model("a"), ecs=True, passing=True, stillborn=True)
        ended = await lab.follow(A)
        assert (ended.state, "could not start" in ended.text) == ("failed", True)
        assert len(lab.started) == 1 + lab.watch.settings.runner_restarts

    simulate(story())


# -- how many runners are started -------------------------------------------------------------------------------------


@pytest.mark.parametrize("why_takes", [0.1, 25.0])
def test_a_failed_start_fails_all_waiting_tasks_at_once_and_no_other_runner_is_started(why_takes: float) -> None:
    async def story() -> None:
        graph = {name: node for number in range(40) for name, node in a_model(f"m{number}").items()}
        lab = Lab(graph, ecs=True, stillborn=True, pending=lambda _: 30, why_takes=why_takes)
        began = asyncio.get_running_loop().time()
        ends = await asyncio.gather(*(lab.follow(node) for node in graph))
        assert {ended.state for ended in ends} == {"failed"}
        assert len({ended.text.split("\n", 1)[1] for ended in ends}) == 1, "all tasks report the same reason"
        assert lab.started == ["shared"]
        assert asyncio.get_running_loop().time() - began < 55

    simulate(story())


def test_a_task_that_begins_while_the_reason_for_a_failed_start_is_read_gets_another_runner() -> None:
    async def story() -> None:
        lab = Lab({**a_model("a"), **a_model("b")}, ecs=True, stillborn=True, why_takes=10)
        a = begun(lab, A)
        await asyncio.sleep(5)
        lab.stillborn = False
        b = begun(lab, B)
        assert (await a).state == "failed"
        assert (await b).state == "success"
        assert len(lab.started) == 2

    simulate(story())


# -- two triggerers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", [5.0, 5.1, 5.17, 5.23])
def test_a_lost_runner_that_two_triggerers_follow_gets_one_replacement(moment: float) -> None:
    async def story() -> None:
        graph = {**a_model("a"), **a_model("b")}
        lab = Lab(graph, ecs=True, slow={A: 10, B: 10}, pending=lambda order: 40 if order.generation > 1 else 0.01)
        both = [begun(lab, A), begun(lab, B, watch=lab.another_watch())]
        await asyncio.sleep(moment)
        lab._kill(1)
        assert [ended.state for ended in await asyncio.gather(*both)] == ["success", "success"]
        assert lab.started == ["shared", "shared"]
        assert sorted(node for _, node in lab.built) == [A, B]

    simulate(story())


def test_a_failed_start_that_two_triggerers_wait_for_is_repeated_once() -> None:
    async def story() -> None:
        lab = Lab({**a_model("a"), **a_model("b")}, ecs=True, passing=True, pending=_slow_later)
        both = [begun(lab, A), begun(lab, B, watch=lab.another_watch())]
        await asyncio.sleep(5)
        lab._kill(1)
        assert [ended.state for ended in await asyncio.gather(*both)] == ["success", "success"]
        assert lab.started == ["shared", "shared"]

    simulate(story())


def _slow_later(order: Order) -> float:
    return 30 if order.generation == 1 else 40
