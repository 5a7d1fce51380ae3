"""Runs followers on an in-memory lake.

Follow, Watch and plan are the real ones; runners are simulated, with dbt's order and skips.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from busco.lake.layout import EnvironmentLayout, new_id
from busco.lake.objects import AlreadyExists, ObjectStore, Record
from busco.lake.records import (
    DOCS_NODE,
    GOOD,
    RUNNER_NODE,
    Ending,
    Heartbeat,
    Order,
    Pin,
    Published,
    Result,
    Runner,
    Status,
    utc_now,
)
from busco.lake.runs import TakenAway, save_pin
from busco.orchestration.async_aws import AsyncObjects
from busco.orchestration.follow import SHARED, Ended, Follow, Job, Superseded
from busco.orchestration.watch import Watch
from busco.project import Project
from busco.settings import SIZES
from busco.warehouse.plan import Plan, for_other_runners, plan
from tests.airflow.simulation import AsyncMemoryS3
from tests.unit.memory_s3 import MemoryS3

ENVIRONMENT = EnvironmentLayout("prod")
BRONZE = "source.p.b"
_LIMIT = 250.0  # seconds within which a follower must end


def a_model(name: str, *parents: str) -> dict[str, Any]:
    return _node(f"model.p.{name}", "model", parents or (BRONZE,))


def a_test(name: str, *parents: str) -> dict[str, Any]:
    return _node(f"test.p.{name}", "test", parents)


def _node(uid: str, kind: str, parents: Sequence[str]) -> dict[str, Any]:
    named = [parent if "." in parent else f"model.p.{parent}" for parent in parents]
    name = uid.rsplit(".", 1)[1]
    config = {"materialized": "lake" if kind == "model" else "test"}
    depends = {"nodes": named}
    node = {"resource_type": kind, "name": name, "alias": name, "schema": "silver", "config": config, "fqn": [name]}
    return {uid: {**node, "depends_on": depends}}


class Store(ObjectStore):
    """An in-memory store for the lake, which needs no threads."""

    def read_many(self, keys: list[str], model: type[Record]) -> list[Record]:
        return [found for key in keys if (found := self.read(key, model)) is not None]


@dataclass
class Lab:
    """A run over `nodes`. Changed attributes take effect with the next runner.

    Attributes:
        bad: nodes that fail, with their final status.
        deadly: nodes that kill their runner.
        slow: how many seconds each of these nodes takes.
        last: nodes that a runner processes after all others, as if dbt's other threads had been busy with them.
        parse_error: the error with which every runner ends before it does anything.
        stillborn: whether runners die before they register.
        heavy: for each of these nodes, the smallest runner size in which it does not run out of memory.
        hangs: nodes at which a runner hangs but stays alive; the next runner does not hang at them.
        silence: seconds without a heartbeat after which a runner is stopped.
        passing: whether runners end for a transient reason.
        pending: returns the seconds between the start of an order's runner and its registration.
        why_takes: how many seconds it takes to read why a runner could not start.
        per_model: whether each model has its own runner.
        joint: tests over several models; with `per_model`, they share one runner.
        ecs: whether an order's runner can be found by its token, as on ECS; otherwise, only the process that started it
            can find it.
    """

    nodes: Mapping[str, Any]
    units: Mapping[str, str] = field(default_factory=dict)
    bad: dict[str, Status] = field(default_factory=dict)
    deadly: set[str] = field(default_factory=set)
    slow: dict[str, float] = field(default_factory=dict)
    last: frozenset[str] = frozenset()
    parse_error: str = ""
    stillborn: bool = False
    heavy: dict[str, str] = field(default_factory=dict)
    hangs: set[str] = field(default_factory=set)
    silence: float = 300
    passing: bool = False
    pending: Callable[[Order], float] = lambda _: 0.01
    why_takes: float = 0.0
    per_model: bool = False
    joint: frozenset[str] = frozenset()
    ecs: bool = False
    sizes: list[str] = field(default_factory=list)
    stopped: list[int] = field(default_factory=list)
    out_of_memory: set[int] = field(default_factory=set)
    messages: list[str] = field(default_factory=list)
    started: list[str] = field(default_factory=list)
    built: list[tuple[int, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        s3 = MemoryS3()
        units = {
            uid: {"model": of.rsplit(".", 1)[1], "name": uid.rsplit(".", 1)[1], "depends_on": {"nodes": [of]}}
            for uid, of in self.units.items()
        }
        manifest = {
            "metadata": {"project_name": "p"},
            "nodes": dict(self.nodes),
            "sources": {BRONZE: {"schema": "bronze", "name": "b"}},
            "unit_tests": units,
            "macros": {},
        }
        self.project = Project(manifest)
        pin = Pin(run="r", epoch=1, environment="prod", base=None, bronze={}, manifest_hash="h", created_at=utc_now())
        self.run = save_pin(Store(s3, "lake"), ENVIRONMENT, pin)
        self.s3 = AsyncMemoryS3(s3)
        settings: Any = SimpleNamespace(lake_bucket="lake")
        self.objects = AsyncObjects(settings, self.s3, asyncio.Semaphore(6))
        self.watch = self.another_watch()
        self.living: dict[int, asyncio.Task[None]] = {}
        self._pids = itertools.count(1)
        self._tasks: dict[str, Any] = {}

    def another_watch(self) -> Watch:
        """Returns the watch of another triggerer, or of this one after a restart."""
        settings: Any = SimpleNamespace(
            environment="prod", execution="ecs_shared", ecs_size="small", runner_restarts=3, runner_silence=self.silence
        )
        launcher: Any = self
        return Watch(settings, self.run.pin, launcher, self.objects)

    async def restart(self) -> None:
        """Replaces the triggerer: all of its state in memory is lost."""
        if self.watch._task is not None:
            self.watch._task.cancel()
            await asyncio.wait([self.watch._task])
        self.watch = self.another_watch()
        self.s3.died.clear()

    # -- the launcher -------------------------------------------------------------------------------------------------

    async def start(self, pin: Pin, order: Order, say: Any) -> Any:
        assert len(self.started) < 30, "runners are started over and over"
        await self.s3.call("RunTask", order.name, lambda: None)
        if self.ecs and order.token in self._tasks:
            return self._tasks[order.token]
        self.started.append(order.name)
        self.sizes.append(order.size)
        pid = next(self._pids)
        self.living[pid] = asyncio.create_task(self._runner(pid, order))

        async def stop(reason: str) -> None:
            self._kill(pid)

        async def why() -> str:
            await asyncio.sleep(self.why_takes)
            return "the end of its output"

        handle = SimpleNamespace(alive=lambda: pid in self.living, passing=lambda: self.passing, why=why, stop=stop)
        return self._tasks.setdefault(order.token, handle)

    async def resume(self, pin: Pin, order: Order, say: Any) -> Any:
        return await self.start(pin, order, say) if self.ecs else None

    async def discard(self, order: Order, reason: str) -> None:
        if order.token in self._tasks:
            await self._tasks[order.token].stop(reason)

    async def look(self, runners: Sequence[Runner], handles: Sequence[Any]) -> dict[int, Ending]:
        return await self.s3.call("DescribeTasks", "", lambda: self._gone(runners))

    def _gone(self, runners: Sequence[Runner]) -> dict[int, Ending]:
        return {
            r.number: Ending(
                number=r.number,
                reason="it ran out of memory" if r.pid in self.out_of_memory else "it was killed",
                out_of_memory=r.pid in self.out_of_memory,
                passing=self.passing,
            )
            for r in runners
            if r.pid not in self.living
        }

    async def stop(self, runner: Runner, reason: str) -> None:
        await self.s3.call("StopTask", str(runner.number), lambda: self._kill(runner.pid))
        self.stopped.append(runner.number)

    async def tail(self, runner: Runner) -> str:
        return await self.s3.call("GetLogEvents", "", lambda: f"output of {runner.number}")

    def _kill(self, pid: int) -> None:
        if task := self.living.pop(pid, None):
            task.cancel()

    # -- a runner -----------------------------------------------------------------------------------------------------

    async def _runner(self, pid: int, order: Order) -> None:
        try:
            await asyncio.sleep(self.pending(order))
            if not self.stillborn:
                await self._work(self._register(pid, order))
        finally:
            self.living.pop(pid, None)

    def _register(self, pid: int, order: Order) -> Runner:
        while True:
            me = Runner(
                number=len(self.run.runners()) + 1,
                kind=order.kind,
                nodes=order.nodes,
                task=order.task,
                attempt=order.attempt,
                order=order.name,
                generation=order.generation,
                launcher="ecs",
                host="lab",
                pid=pid,
                started=0,
                token=new_id(),
                size=order.size,
            )
            try:
                self.run.store.create(self.run.layout.runner(me.number), me)
                return me
            except AlreadyExists:
                continue

    async def _work(self, me: Runner) -> None:
        def say(node: str, status: Status, **more: Any) -> None:
            self.run.put_result(Result(node=node, runner=me.number, status=status, **more), f"log of {node}")

        if self.parse_error:
            say(RUNNER_NODE, "error", error=self.parse_error)
            return
        made = plan(self.run, self.project, for_other_runners(self.run)) if me.kind == "shared" else Plan(me.nodes, {})
        say(RUNNER_NODE, "running", plan=made.all)
        statuses: dict[str, Status] = {}
        for node, name in made.blocked.items():
            say(node, "skipped", message=f"skipped: {name} failed in this run")
            statuses[node] = "skipped"
        for node in sorted(
            (n for n in made.nodes if n != DOCS_NODE), key=lambda n: (n in self.last, self._depth(n), n)
        ):
            if self._is_skipped(node, statuses):
                statuses[node] = "skipped"
                say(node, "skipped", message="skipped because of an upstream node")
                continue
            self.run.store.put(
                self.run.layout.heartbeat(me.number),
                Heartbeat(number=me.number, beat=len(statuses), written_at=utc_now()),
            )
            if node in self.deadly:
                return
            if node in self.hangs:
                self.hangs.discard(node)
                say(node, "running")
                await asyncio.Event().wait()
            if node in self.heavy and SIZES.index(me.size) < SIZES.index(self.heavy[node]):  # type: ignore[arg-type]
                say(node, "running")
                self.out_of_memory.add(me.pid)
                return
            statuses[node] = await self._one(me, node, say)
        if DOCS_NODE in made.nodes and all(status in GOOD for status in statuses.values()):
            say(DOCS_NODE, "success", reads=self._reads(None))
        say(RUNNER_NODE, "success", plan=made.all)

    async def _one(self, me: Runner, node: str, say: Any) -> Status:
        say(node, "running")
        table, reads = self.project.table_of(node), self._reads(node)
        status = self.bad.get(node, "success")
        try:
            token = self.run.take(table, me.number) if table else ""
            # a test may shorten this in the meantime
            clock = asyncio.get_running_loop().time
            began = clock()
            while (left := began + self.slow.get(node, 0.002) - clock()) > 0:
                await asyncio.sleep(min(left, 0.01))
            made = new_id() if table and status == "success" else None
            if table and made:
                self.run.enter(table, token, self._version(table, made, reads), kept=False)
                self.built.append((me.number, node))
        except TakenAway:
            say(node, "error", error="was given to another runner", fenced=True)
            return "error"
        say(node, status, made=made, reads=reads, error="" if status in GOOD else f"{node} is bad")
        return status

    def _version(self, table: str, version: str, reads: dict[str, str]) -> Published:
        return Published(
            table=table, version=version, record="r", rows=1, bytes=1, files=1, metadata="m", inputs=reads, project="p"
        )

    def _reads(self, node: str | None) -> dict[str, str]:
        entries = self.run.entries()
        tables = {t for t, e in entries.items() if e.version}
        if node is not None:
            tables &= self.project.parents(node) if node in self.project.nodes else set()
        return {table: entries[table].version.version for table in tables if entries[table].version}

    def _is_skipped(self, node: str, statuses: Mapping[str, Status]) -> bool:
        above = self.project.ancestors.get(node, frozenset())
        units = {unit for unit, of in self.project.unit_tests.items() if of == node}
        gates = {test for test, gated in self.project.gates.items() if node in gated}
        return any(statuses.get(one) in ("failed", "error", "skipped") for one in {*above, *units, *gates})

    def _depth(self, node: str) -> float:
        if node in self.project.unit_tests:
            return self._depth(self.project.unit_tests[node]) - 0.5
        parents = [p for p in self.project.nodes[node]["depends_on"]["nodes"] if p in self.project.nodes]
        deepest = max([self._depth(parent) for parent in parents], default=0.0)
        return deepest + 0.2 if node in self.project.tests else int(deepest) + 1

    # -- a task -------------------------------------------------------------------------------------------------------

    async def follow(
        self,
        *nodes: str,
        attempt: int = 1,
        restarts: int = 3,
        along: Sequence[str] = (),
        task: str = "",
        watch: Watch | None = None,
    ) -> Ended:
        """Runs a try of the task for these nodes. Without a name, the task is named after the first node.

        Args:
            watch: the watch of the triggerer that runs the task, if it is not this one.
        """
        task = task or nodes[0].split(".", 2)[-1]
        name = f"{task}/{attempt}"
        job = Job(task, attempt, nodes, tuple(along), task, joint=nodes[0] in self.joint)
        watch = watch or self.watch
        follow = Follow(watch, job, restarts, self.per_model, self.messages.append)
        await watch.enter(name)
        try:
            return await asyncio.wait_for(follow.run(), _LIMIT)
        except Superseded:
            return Ended("superseded", "")
        finally:
            watch.leave(name)

    async def clear(self, following: asyncio.Task[Ended], slot: str, elsewhere: int = 0) -> None:
        """Cancels a task that waits in this triggerer, as Airflow does after it was cleared or marked.

        Args:
            elsewhere: how many other tasks of the run Airflow is waiting for, in this triggerer or another one.
        """
        number = self.watch.followers.get(slot, 0)
        following.cancel()
        await asyncio.wait({following})
        if following.cancelled():
            self.watch.followers[slot] = number
            await self.watch.release(slot, SHARED, "it was cleared", elsewhere)
