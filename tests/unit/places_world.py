"""A simulation, in memory and with simulated time, of triggerers, the table of slots, and a slow and unreliable ECS."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal
from unittest import mock

from busco.orchestration import places
from busco.orchestration.places import STALE, Holder, Place, Places, Unreachable
from busco.orchestration.stops import Stop

# outcomes of RunTask: the task starts; no capacity; the task starts, but the response is lost; the request is lost
Fault = Literal["none", "capacity", "lost", "unheard"]
BUSY = Stop("capacity", "there is no capacity", "wait", True)
LAG = 3.0  # seconds for which ListTasks may omit a task that has just started


class Killed(BaseException):
    """The caller's process has died."""


class Memory:
    """`Slots` in memory; tests/airflow/test_slots.py compares it with the real table, step by step."""

    def __init__(self, limit: int, clock: Callable[[], float]) -> None:
        self.limit, self.clock = limit, clock
        self.rows: dict[str, Row] = {}
        self._numbers = itertools.count(1)

    def ask(self, token: str, label: str, start: str) -> Place:
        now = self.clock()
        row = self.rows.setdefault(token, Row(next(self._numbers), now, start))
        row.asked_at = now
        if row.start != start:
            row.start = ""
        self.rows = {key: one for key, one in self.rows.items() if one.is_taken or one.asked_at >= now - 60}
        taken = sum(one.is_taken for one in self.rows.values())
        if row.is_taken:
            return Place(True, 0, taken, row.number, row.arn)
        ahead = sum(not one.is_taken and one.number < row.number for one in self.rows.values())
        if taken + ahead < self.limit:
            row.is_taken = True
            return Place(True, 0, taken + 1, row.number)
        return Place(False, ahead, taken, row.number)

    def keep(self, token: str) -> bool:
        row = self._granted(token)
        if row is not None:
            row.asked_at = self.clock()
        return row is not None

    def started(self, token: str, arn: str) -> bool:
        row = self.rows.get(token)
        if row is None or not row.is_taken or row.arn not in ("", arn):
            return False
        row.arn, row.asked_at = arn, self.clock()
        return True

    def leave(self, token: str) -> bool:
        return self._drop(token, lambda row: not row.is_taken)

    def give_back(self, token: str, start: str) -> bool:
        return self._drop(token, lambda row: not row.arn and row.start == start)

    def take_away(self, token: str, seconds: float) -> bool:
        return self._granted(token) is not None and self._drop(token, lambda row: row.asked_at < self.clock() - seconds)

    def gone(self, arns: Collection[str]) -> list[str]:
        tokens = [token for token, row in self.rows.items() if row.arn in arns]
        for token in tokens:
            del self.rows[token]
        return tokens

    def holders(self) -> list[Holder]:
        taken = sorted((row.number, token) for token, row in self.rows.items() if row.is_taken)
        return [Holder(token, self.rows[token].arn, self.clock() - self.rows[token].asked_at) for _, token in taken]

    def _granted(self, token: str) -> Row | None:
        row = self.rows.get(token)
        return row if row is not None and row.is_taken and not row.arn else None

    def _drop(self, token: str, when: Callable[[Row], bool]) -> bool:
        row = self.rows.get(token)
        if row is None or not when(row):
            return False
        del self.rows[token]
        return True


@dataclass
class Row:
    number: int
    asked_at: float
    start: str = ""
    is_taken: bool = False
    arn: str = ""


@dataclass
class Task:
    """An ECS task: from `ends_at` on, nothing of it is running; `stops` means that it is being stopped."""

    arn: str
    token: str
    started_at: float
    ends_at: float
    stops: bool = False


class World:
    """ECS, and the table of slots that all triggerers share.

    Args:
        limit: the number of slots.
        duration: seconds that a task runs.
        ending: seconds that a task takes to end after it was stopped.
    """

    def __init__(self, limit: int, duration: float = 120, ending: float = 30) -> None:
        loop = asyncio.get_running_loop()
        self.clock = loop.time
        self.table = Memory(limit, self.clock)
        self.tasks: dict[str, Task] = {}
        self.by_client_token: dict[str, str] = {}
        self.faults: dict[str, list[Fault]] = {}
        self.throttled_until = 0.0
        self.duration, self.ending = duration, ending
        self.most = 0

    def living(self) -> list[Task]:
        now = self.clock()
        return [task for task in self.tasks.values() if task.ends_at > now]

    def without_a_row(self) -> list[Task]:
        """Returns the running tasks that have no slot."""
        rows = self.table.rows
        return [task for task in self.living() if task.token not in rows or rows[task.token].arn not in ("", task.arn)]

    def run_task(self, token: str, client_token: str) -> str:
        arn = self.by_client_token.setdefault(client_token, f"arn:{len(self.tasks) + 1}")
        if arn not in self.tasks:
            self.tasks[arn] = Task(arn, token, self.clock(), self.clock() + self.duration)
            self.most = max(self.most, len(self.living()))
        return arn


@dataclass
class Triggerer:
    """A process with its own launcher. `kill` ends it between two instructions; `stall` pauses it for some time."""

    world: World
    latency: Sequence[float] = (0.05,)
    alive: bool = True
    runs_from: float = 0.0
    _latencies: Any = field(init=False)
    said: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._latencies = itertools.cycle(self.latency)
        self.places = Places(Proxy(self), self)  # type: ignore[arg-type]

    async def start(self, token: str) -> str:
        async def run(client_token: str) -> str:
            return await self._run(token, client_token)

        return await self.places.start(token, token, run, self.said.append)

    def kill(self) -> None:
        self.alive = False

    def stall(self, seconds: float) -> None:
        self.runs_from = self.world.clock() + seconds

    async def point(self) -> None:
        """A point at which the process can be killed or paused."""
        await asyncio.sleep(0)
        while self.alive and self.world.clock() < self.runs_from:
            await asyncio.sleep(self.runs_from - self.world.clock())
        if not self.alive:
            raise Killed

    # -- ECS, over the network ----------------------------------------------------------------------------------------

    async def _run(self, token: str, client_token: str) -> str:
        await self._call()
        waiting = self.world.faults.get(token) or ["none"]
        fault = waiting.pop(0)
        if fault == "capacity":
            raise Unreachable(BUSY)
        arn = self.world.run_task(token, client_token) if fault != "unheard" else ""
        await asyncio.sleep(next(self._latencies))
        await self.point()
        if fault in ("lost", "unheard"):
            raise Unreachable(BUSY, sure=False)
        return arn

    async def of(self, token: str) -> list[str]:
        await self._call()
        now = self.world.clock()
        listed = [task for task in self.world.tasks.values() if task.token == token and now - task.started_at >= LAG]
        return [task.arn for task in sorted(listed, key=lambda task: task.stops or task.ends_at <= now)]

    async def living(self, token: str) -> list[str]:
        found = await self.of(token)
        await self._call()
        return [task.arn for task in self.world.living() if task.arn in found]

    async def over(self, holders: Collection[Holder]) -> set[str]:
        await self._call()
        return {one.arn for one in holders} - {task.arn for task in self.world.living()}

    async def stop_task(self, arn: str, reason: str) -> None:
        await self._call()
        task = self.world.tasks[arn]
        if not task.stops:
            task.stops, task.ends_at = True, min(task.ends_at, self.world.clock() + self.world.ending)

    async def _call(self) -> None:
        await self.point()
        await asyncio.sleep(next(self._latencies))
        await self.point()
        if self.world.clock() < self.world.throttled_until:
            raise Unreachable(BUSY)


class Proxy:
    """The table as used by a process that can be killed or paused before and after every call."""

    def __init__(self, process: Triggerer) -> None:
        self.process = process

    def __getattr__(self, name: str) -> Any:
        return getattr(self.process.world.table, name) if name == "limit" else Question(self.process, name)


@dataclass(frozen=True)
class Question:
    process: Triggerer
    name: str


@contextmanager
def in_one_thread() -> Iterator[None]:
    """Makes all calls to the table in the event loop's own thread, because simulated time supports no other threads."""

    async def ask(question: Question, *arguments: Any) -> Any:
        await question.process.point()
        answer = getattr(question.process.world.table, question.name)(*arguments)
        await question.process.point()
        return answer

    with mock.patch.object(places, "_in_thread", ask):
        yield


async def maintenance(world: World) -> None:
    """Waits until heartbeats of dead triggerers are stale, and then frees slots as another process would."""
    await asyncio.sleep(STALE + LAG + 1)
    while await Triggerer(world).places.free():
        await asyncio.sleep(1)
