"""Faults of S3, ECS and the triggerer change neither a task's final state nor what is built.

Each call of a scenario fails once, loses its reply, or has the triggerer die before or after it. The scenario must end
as it does without faults.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

import pytest

from busco.lake.records import DOCS_NODE
from tests.airflow.lab import Lab, a_model, a_test
from tests.airflow.simulation import Call, Fault, simulate

S, G, K, X, Y = "model.p.s", "model.p.g", "model.p.k", "model.p.x", "model.p.y"
TS, TG = "test.p.ts", "test.p.tg"
NODES = {**a_model("s"), **a_model("g", "s"), **a_model("k", "g"), **a_test("ts", "s"), **a_test("tg", "g")}
# for each task: the nodes that decide it, the nodes that its own runner also builds, and its upstream tasks
Tasks = Mapping[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]]
CHAIN: Tasks = {
    "s": ((S,), (TS,), ()),
    "ts": ((TS,), (), ("s",)),
    "g": ((G,), (TG,), ("ts",)),
    "tg": ((TG,), (), ("g",)),
    "k": ((K,), (), ("tg",)),
    "docs": ((DOCS_NODE,), (), ("k",)),
}
SIDE_BY_SIDE: Tasks = {
    "s": ((S,), (), ()),
    "g": ((G,), (), ("s",)),
    "x": ((X,), (), ("s",)),
    "k": ((K,), (), ("g",)),
    "y": ((Y,), (), ("x",)),
}


@dataclass
class Airflow:
    """Airflow's side of a run.

    A try begins when the upstream tasks have succeeded. If the triggerer dies, the try continues in the next one.
    """

    lab: Lab
    tasks: Tasks
    restarts: int = 3
    states: dict[str, str] = field(default_factory=dict)
    tries: dict[str, int] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)

    async def run(self) -> None:
        """Runs all tasks, and returns when no further one can start."""
        going: dict[str, asyncio.Task[None]] = {}
        while True:
            for name, (_, _, before) in self.tasks.items():
                if name in self.states or name in going:
                    continue
                if any(self.states.get(one) in ("failed", "upstream_failed") for one in before):
                    self.states[name] = "upstream_failed"
                elif all(self.states.get(one) == "success" for one in before):
                    going[name] = asyncio.create_task(self._try(name))
            if not going:
                return
            died = asyncio.create_task(self.lab.s3.died.wait())
            await asyncio.wait([*going.values(), died], return_when=asyncio.FIRST_COMPLETED)
            died.cancel()
            if self.lab.s3.died.is_set():
                for task in going.values():
                    task.cancel()
                await asyncio.wait(going.values())
                await self.lab.restart()
            for name in [name for name, task in going.items() if task.done()]:
                task = going.pop(name)
                if not task.cancelled():
                    task.result()

    async def _try(self, name: str) -> None:
        nodes, along, _ = self.tasks[name]
        attempt = self.tries.setdefault(name, 1)
        ended = await self.lab.follow(*nodes, attempt=attempt, restarts=self.restarts, along=along, task=name)
        self.states[name] = ended.state
        self.texts.append(f"{name}/{attempt}: {ended.text}\n{ended.details}")

    def clear(self, *names: str) -> None:
        """Clears tasks. Those that have already started get a further try."""
        for name in names:
            if self.states.pop(name) != "upstream_failed":
                self.tries[name] += 1


Scenario = Callable[[Lab, Airflow], Awaitable[None]]


async def a_parent_is_fixed_and_cleared(lab: Lab, airflow: Airflow) -> None:
    lab.bad[G] = "error"
    await airflow.run()
    assert airflow.states["g"] == "failed"
    lab.bad.clear()
    airflow.clear("g", "tg", "k", "docs")
    await airflow.run()


async def a_green_model_is_cleared_with_everything_downstream(lab: Lab, airflow: Airflow) -> None:
    await airflow.run()
    airflow.clear(*airflow.tasks)
    await airflow.run()


async def a_runner_dies_at_a_model_each_time(lab: Lab, airflow: Airflow) -> None:
    lab.deadly.add(G)
    airflow.restarts = 1
    await airflow.run()
    assert airflow.states["g"] == "failed"
    assert "ended without a result" in airflow.texts[-1]
    lab.deadly.clear()
    airflow.clear("g", "tg", "k", "docs")
    await airflow.run()


async def two_models_are_fixed_and_cleared_at_once(lab: Lab, airflow: Airflow) -> None:
    lab.bad |= {G: "error", X: "error"}
    await airflow.run()
    assert (airflow.states["g"], airflow.states["x"]) == ("failed", "failed")
    lab.bad.clear()
    airflow.clear("g", "x", "k", "y")
    await airflow.run()


SCENARIOS: list[Scenario] = [
    a_parent_is_fixed_and_cleared,
    a_green_model_is_cleared_with_everything_downstream,
    a_runner_dies_at_a_model_each_time,
    two_models_are_fixed_and_cleared_at_once,
]


@dataclass(frozen=True)
class Outcome:
    """The result of a scenario: the tasks' states, and each model once for each time that it was built.

    `started` has the names of the runners' orders. They are deterministic only if tasks run one after another.
    """

    states: dict[str, str]
    built: list[str]
    started: list[str]
    texts: list[str] = field(compare=False)
    calls: int = field(compare=False)


def end_of(
    scenario: Scenario, fault: Callable[[Call], Fault | None], delay: Callable[[], float] = lambda: 0.0
) -> Outcome:
    async def played() -> Outcome:
        at_once = scenario is two_models_are_fixed_and_cleared_at_once
        nodes = {**a_model("s"), **a_model("g", "s"), **a_model("k", "g"), **a_model("x", "s"), **a_model("y", "x")}
        lab = Lab(nodes if at_once else NODES, ecs=True, slow=dict.fromkeys([S, G, K, X, Y], 0.1))
        lab.s3.fault, lab.s3.delay = fault, delay
        airflow = Airflow(lab, SIDE_BY_SIDE if at_once else CHAIN)
        await scenario(lab, airflow)
        built, started = sorted(node for _, node in lab.built), [] if at_once else lab.started
        return Outcome(airflow.states, built, started, airflow.texts, len(lab.s3.calls))

    return simulate(played())


KINDS: dict[str, tuple[Fault, ...]] = {
    "calls fail": ("unavailable", "lost", "retried", "conflict"),
    "the triggerer dies": ("dies", "dies_after"),
}


def fits(fault: Fault, call: Call) -> Fault | None:
    """Returns the fault, or None if it applies only to writes and the call is not one."""
    return None if fault in ("retried", "conflict") and call.operation != "PUT" else fault


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_a_scenario_ends_the_same_whichever_of_its_calls_fail(scenario: Scenario, kind: str) -> None:
    """In each round several calls fail; over all rounds, every call fails once.

    A triggerer must get further than the one that died before it, so there are fewer deaths in a round.
    """
    expected = end_of(scenario, lambda _: None)
    every = 13 if kind == "calls fail" else 45
    for number in range(every):
        chosen = random.Random(number)

        def fault(call: Call, number: int = number, chosen: random.Random = chosen) -> Fault | None:
            strikes = call.number % every == number and call.number <= expected.calls
            return fits(chosen.choice(KINDS[kind]), call) if strikes else None

        assert end_of(scenario, fault) == expected, f"every {every}th call failed, from call {number}"


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_a_scenario_ends_the_same_over_a_slow_and_unreliable_network(scenario: Scenario) -> None:
    expected = end_of(scenario, lambda _: None)
    for seed in range(8):
        chance = random.Random(seed)

        def fault(call: Call, chance: random.Random = chance) -> Fault | None:
            every = [one for kinds in KINDS.values() for one in kinds]
            strikes = chance.random() < 0.04 and call.number <= 2 * expected.calls
            return fits(chance.choice(every), call) if strikes else None

        found = end_of(scenario, fault, lambda chance=chance: chance.random() * 0.1)  # type: ignore[misc]
        assert found.states == expected.states, f"seed {seed}: {found.texts}"
        assert found.built == expected.built, f"seed {seed}: {found.started}"


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_a_scenario_ends_the_same_whichever_single_call_fails_and_however_it_fails(
    scenario: Scenario, kind: str
) -> None:
    expected = end_of(scenario, lambda _: None)
    for number in range(1, expected.calls + 1):
        for fault in KINDS[kind]:

            def once(call: Call, number: int = number, fault: Fault = fault) -> Fault | None:
                return fits(fault, call) if call.number == number else None

            assert end_of(scenario, once) == expected, f"call {number}: {fault}"
