"""Clearing or marking a task stops the runners that no other task needs; those that others need continue."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import pytest

from busco.lake.records import Order, Pin
from busco.orchestration.follow import Ended
from tests.airflow.lab import Lab, a_model, a_test
from tests.airflow.simulation import simulate

A, B = "model.p.a", "model.p.b"
T, N1, N2 = "test.p.t", "test.p.n1", "test.p.n2"
PAIR = {**a_model("a"), **a_model("b")}


def follow(lab: Lab, *nodes: str, **more: Any) -> asyncio.Task[Ended]:
    return asyncio.create_task(lab.follow(*nodes, **more))


async def until(ready: Callable[[], Any]) -> None:
    while not ready():
        await asyncio.sleep(0.01)


def later_ones_wait(order: Order) -> float:
    """Makes the first runner of an order register at once and later ones after a delay, as on ECS."""
    return 0.01 if order.generation == 1 else 5


# -- which runners are stopped ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ecs", [False, True])
def test_the_replacement_of_a_lost_runner_is_stopped_before_it_registers(ecs: bool) -> None:
    async def story() -> None:
        lab = Lab(a_model("a"), ecs=ecs, slow={A: 100}, pending=later_ones_wait)
        a = follow(lab, A)
        await until(lambda: lab.watch.followers.get("a/1") == 1)
        lab._kill(1)
        await until(lambda: len(lab.started) == 2)
        await asyncio.sleep(1)
        await lab.clear(a, "a/1")
        await asyncio.sleep(10)
        assert (list(lab.living), len(lab.run.runners())) == ([], 1)

    simulate(story())


def test_the_replacement_of_a_lost_runner_is_stopped_while_others_follow_another_runner() -> None:
    async def story() -> None:
        lab = Lab(PAIR, ecs=True, slow={B: 100}, pending=later_ones_wait)
        assert (await lab.follow(A)).state == "success"
        lab.slow[A] = 100
        again, b = follow(lab, A, attempt=2), follow(lab, B)
        await until(lambda: len(lab.run.runners()) == 2 and all(lab.watch.followers.values()))
        lab._kill(lab.run.runners()[0].pid)
        await until(lambda: lab.started[2:] == ["shared"])
        await lab.clear(b, "b/1", elsewhere=1)
        await asyncio.sleep(10)
        assert list(lab.living) == [2], "the runner of the task that was not cleared"
        again.cancel()

    simulate(story())


def test_a_runner_is_stopped_although_the_last_task_of_its_run_waited_for_another_runner() -> None:
    async def story() -> None:
        lab = Lab({**PAIR, **a_test("t", "a")}, ecs=True, per_model=True, slow={T: 100})
        start = lab.start

        async def no_place(pin: Pin, order: Order, say: Any) -> Any:
            if order.name == "b/1":
                await asyncio.sleep(1000)
            return await start(pin, order, say)

        with mock.patch.object(lab, "start", no_place):
            assert (await lab.follow(A, along=[T])).state == "success"
            t, b = follow(lab, T), follow(lab, B)
            await until(lambda: lab.watch.followers == {"t/1": 1, "b/1": 0} and "b/1" in lab.watch.orders)
            await lab.clear(t, "t/1")
            await lab.clear(b, "b/1")
        assert list(lab.living) == []

    simulate(story())


def test_the_runner_of_joint_tests_continues_for_a_follower_that_did_not_order_it() -> None:
    async def story() -> None:
        graph = {**a_model("s"), **a_model("x"), **a_test("n1", "s", "x"), **a_test("n2", "s", "x")}
        lab = Lab(graph, ecs=True, per_model=True, joint=frozenset({N1, N2}), slow={N1: 50, N2: 50})
        first, second = follow(lab, N1), follow(lab, N2)
        await until(lambda: lab.watch.followers == {"n1/1": 1, "n2/1": 1})
        await lab.clear(second, "n2/1", elsewhere=1)
        again = follow(lab, N2, attempt=2)
        await until(lambda: lab.watch.followers == {"n1/1": 1, "n2/2": 1})
        await lab.clear(first, "n1/1", elsewhere=1)
        assert (await again).state == "success"
        assert (lab.stopped, len(lab.started)) == ([], 1)

    simulate(story())


def test_a_replacement_that_another_triggerer_ordered_is_stopped_too() -> None:
    async def story() -> None:
        lab = Lab(a_model("a"), ecs=True, slow={A: 100}, pending=later_ones_wait)
        theirs = lab.another_watch()
        a, moved = follow(lab, A), follow(lab, A, task="moved", watch=theirs)
        await until(lambda: lab.watch.followers.get("a/1") == 1 == theirs.followers.get("moved/1"))
        # this triggerer's follower does nothing while the other triggerer replaces the runner
        a.cancel()
        lab._kill(1)
        await until(lambda: len(lab.started) == 2)
        moved.cancel()
        await lab.watch.enter("a/1")
        assert lab.watch.launched["shared"].order.generation < lab.watch.orders["shared"].generation
        await lab.watch.release("a/1", "shared", "it was cleared")
        await asyncio.sleep(10)
        assert list(lab.living) == []

    simulate(story())


# -- at any moment ----------------------------------------------------------------------------------------------------

GRAPH = {**PAIR, **a_model("c", "a"), **a_model("d", "b", "c"), **a_test("tc", "c"), **a_test("j", "a", "b")}
BEFORE = {"a": "", "b": "", "c": "a", "d": "bc", "tc": "c", "j": "ab"}
NODE = {name: ("model.p." if len(name) == 1 and name != "j" else "test.p.") + name for name in BEFORE}


@dataclass
class Stories:
    """A run in which runners are killed and tasks are cleared at random, until all of its tasks are cleared at once."""

    chance: random.Random
    done: set[str] = field(default_factory=set)
    tries: dict[str, int] = field(default_factory=lambda: dict.fromkeys(BEFORE, 0))
    going: dict[str, asyncio.Task[Ended]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.lab = Lab(
            GRAPH,
            ecs=self.chance.random() < 0.8,
            per_model=self.chance.random() < 0.4,
            joint=frozenset({NODE["j"]}),
            passing=True,
            slow={node: self.chance.choice([0.01, 0.5, 3]) for node in NODE.values()},
            pending=lambda _: self.chance.choice([0.01, 2, 5]),
        )

    async def run(self) -> list[int]:
        """Returns the runners that are left alive."""
        now = asyncio.get_running_loop().time
        end = now() + self.chance.uniform(1, 12)
        while now() < end:
            await self._go_on(self.chance.choice([0.05, 0.3, 1]))
            if self.chance.random() < 0.5 and len(self.lab.started) < 20:
                await self._disturb()
        self.lab.slow = dict.fromkeys(NODE.values(), 1000.0)
        # between two levels of its graph, a run has no task that could stop a runner
        await self._go_on(0.05)
        while not self.going and len(self.done) < len(BEFORE):
            await self._go_on(0.05)
        for name in self.chance.sample(list(self.going), len(self.going)):
            await self._clear(name, 0)
        await asyncio.sleep(20)
        return list(self.lab.living)

    async def _go_on(self, seconds: float) -> None:
        self._begin()
        await asyncio.sleep(seconds)
        for name in [name for name, task in self.going.items() if task.done()]:
            if self.going.pop(name).result().state == "success":
                self.done.add(name)

    def _begin(self) -> None:
        for name, parents in BEFORE.items():
            if name not in self.done and name not in self.going and self.done.issuperset(parents):
                self.tries[name] += 1
                along = [NODE["tc"]] if name == "c" else []
                self.going[name] = follow(self.lab, NODE[name], attempt=self.tries[name], restarts=5, along=along)

    async def _disturb(self) -> None:
        what = self.chance.choice(["kill", "kill", "clear", "clear a finished task"])
        if what == "kill" and self.lab.living:
            self.lab._kill(self.chance.choice(list(self.lab.living)))
        elif what == "clear" and self.going:
            await self._clear(self.chance.choice(list(self.going)), len(self.going) - 1)
        elif what == "clear a finished task" and self.done:
            cleared = [self.chance.choice(sorted(self.done))]
            cleared += [name for name, parents in BEFORE.items() if {*parents} & {*cleared}]
            self.done -= {*cleared}
            for name in [name for name in cleared if name in self.going]:
                await self._clear(name, len(self.going) - 1)

    async def _clear(self, name: str, elsewhere: int) -> None:
        await self.lab.clear(self.going.pop(name), f"{name}/{self.tries[name]}", elsewhere)


def test_no_runner_is_left_alive_whenever_all_tasks_are_cleared() -> None:
    for seed in range(150):
        alive = simulate(Stories(random.Random(seed)).run())
        assert not alive, f"seed {seed}"
