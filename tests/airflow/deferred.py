"""Runs the triggers of deferred tasks as Airflow does, in real time, on an in-memory lake."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest import mock

from busco.orchestration import dag_runs, triggers, watches
from busco.orchestration.dag_runs import Asked
from busco.orchestration.triggers import FollowTrigger
from tests.airflow.lab import Lab


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(story, 10))


async def until(ready: Callable[[], Any]) -> None:
    while not ready():
        await asyncio.sleep(0.002)


@dataclass
class Tasks:
    """Airflow as the triggers see it: the tasks of one DAG run, each with its trigger, on an in-memory lake."""

    lab: Lab
    state: str = "running"
    waiting: set[int] = field(default_factory=set)
    down: bool = False
    events: dict[str, Any] = field(default_factory=dict)
    questions: int = 0

    def ask(self, *_: Any) -> Asked:
        self.questions += 1
        if self.down:
            raise OSError("the database is unavailable")
        return Asked(self.state, frozenset(self.waiting))

    def defer(self, node: str, number: int, joint: bool = False, attempt: int = 1) -> asyncio.Task[None]:
        """Starts the trigger of a task that the scheduler has deferred."""
        name = node.rsplit(".", 1)[1]
        trigger = FollowTrigger(name, [node], [], name, joint=joint)
        names = {"dag_id": "d", "run_id": "r", "task_id": name, "map_index": -1}
        instance = SimpleNamespace(**names, try_number=attempt, end_date=None)
        trigger.task_instance, trigger.trigger_id = instance, number  # type: ignore[assignment]
        self.waiting.add(number)

        async def follow() -> None:
            async for event in trigger.run():
                self.events[name] = event
            self.waiting.discard(number)

        return asyncio.create_task(follow())

    @contextmanager
    def here(self) -> Iterator[None]:
        async def watched(settings: Any, run: str, follower: str) -> Any:
            self.lab.watch.followers[follower] = 0
            return self.lab.watch

        settings = SimpleNamespace(runner_restarts=3, execution="ecs" if self.lab.per_model else "ecs_shared")
        with (
            mock.patch.object(watches, "watch", watched),
            mock.patch.object(dag_runs, "ask", self.ask),
            mock.patch.object(triggers, "get_settings", return_value=settings),
            mock.patch.object(FollowTrigger, "_stale", return_value=""),
        ):
            yield


def kind(event: Any) -> str:
    return type(event).__name__
