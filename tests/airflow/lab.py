"""Followers on a lake in memory: the real Follow, Watch and plan; runners are simulated, with dbt's order and skips."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest import mock

from busco.lake.layout import EnvironmentLayout, new_id
from busco.lake.objects import AlreadyExists, ObjectStore
from busco.lake.records import (
    DOCS_NODE,
    GOOD,
    RUNNER_NODE,
    Ending,
    Heartbeat,
    Order,
    Pin,
    Result,
    Runner,
    Status,
    Version,
    utc_now,
)
from busco.lake.runs import TakenAway, save_pin
from busco.orchestration import async_aws
from busco.orchestration import watch as watching
from busco.orchestration.follow import Ended, Follow, Job, Superseded
from busco.project import Project
from busco.settings import SIZES
from busco.warehouse.plan import Plan, for_other_runners, plan
from tests.unit.memory_s3 import MemoryS3, _etag

ENVIRONMENT = EnvironmentLayout("prod")
BRONZE = "source.p.b"
_LIMIT = 20.0  # seconds for a follower that is to end


def a_model(name: str, *parents: str) -> dict[str, Any]:
    return _node(f"model.p.{name}", "model", parents or (BRONZE,))


def a_test(name: str, *parents: str) -> dict[str, Any]:
    return _node(f"test.p.{name}", "test", parents)


def _node(uid: str, kind: str, parents: Sequence[str]) -> dict[str, Any]:
    named = [parent if "." in parent else f"model.p.{parent}" for parent in parents]
    name = uid.rsplit(".", 1)[1]
    config = {"materialized": "lake" if kind == "model" else "test"}
    depends = {"nodes": named}
    said = {"resource_type": kind, "name": name, "alias": name, "schema": "silver", "config": config, "fqn": [name]}
    return {uid: {**said, "depends_on": depends}}


class Objects:
    """AsyncObjects over the memory's dictionary; `lose_reply` loses the answer of the next write that holds it."""

    def __init__(self, s3: MemoryS3) -> None:
        self.s3 = s3
        self.lose_reply = ""

    async def get(self, key: str) -> tuple[bytes, str] | None:
        body = self.s3.objects.get(key)
        return None if body is None else (body, _etag(body))

    async def put(self, key: str, body: str, etag: str | None) -> None:
        known = self.s3.objects.get(key)
        if (etag is None) != (known is None) or (known is not None and _etag(known) != etag):
            raise async_aws.Conflict(key)
        self.s3.objects[key] = body.encode()
        if self.lose_reply and self.lose_reply in body:
            # written, the reply lost, and the client's own retry refused
            self.lose_reply = ""
            raise async_aws.Conflict(key)

    async def etags(self, prefix: str, delimiter: str = "") -> dict[str, str]:
        found = {key: _etag(body) for key, body in self.s3.objects.items() if key.startswith(prefix)}
        return {key: etag for key, etag in found.items() if not delimiter or delimiter not in key[len(prefix) :]}


@dataclass
class Lab:
    """A run over `nodes`; what each attribute says holds from the next runner on.

    Attributes:
        bad: nodes that fail, with the status that they end with.
        deadly: nodes that kill their runner.
        slow: seconds that a node takes.
        last: nodes that a runner comes to after all others, as where another of dbt's threads was busy with them.
        parse_error: what every runner ends with before it does anything.
        stillborn: runners die before they register themselves.
        heavy: the smallest size in which a node does not run out of memory.
        hangs: nodes at which a runner does nothing more, and lives; the next one does not.
        silence: seconds without a heartbeat after which one is stopped.
        passing: what kills runners may pass.
        per_model: each model has a runner of its own.
        joint: tests over several models, which share one then.
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
    per_model: bool = False
    joint: frozenset[str] = frozenset()
    sizes: list[str] = field(default_factory=list)
    stopped: list[int] = field(default_factory=list)
    out_of_memory: set[int] = field(default_factory=set)
    said: list[str] = field(default_factory=list)
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
        self.run = save_pin(ObjectStore(s3, "lake"), ENVIRONMENT, pin)
        self.objects = Objects(s3)
        self.watch = self.another_watch()
        self.living: dict[int, asyncio.Task[None]] = {}
        self._pids = itertools.count(1)

    def another_watch(self) -> watching.Watch:
        """The watch of another triggerer, or of this one started again."""
        settings: Any = SimpleNamespace(
            environment="prod", ecs_size="small", runner_restarts=3, runner_silence=self.silence
        )
        launcher: Any = self
        objects: Any = self.objects
        return watching.Watch(settings, self.run.pin, launcher, objects)

    # -- the launcher -------------------------------------------------------------------------------------------------

    async def start(self, pin: Pin, order: Order, say: Any) -> Any:
        assert len(self.started) < 30, "runner after runner"
        self.started.append(order.name)
        self.sizes.append(order.size)
        pid = next(self._pids)
        self.living[pid] = asyncio.create_task(self._runner(pid, order))

        async def stop(reason: str) -> None:
            self._kill(pid)

        async def why() -> str:
            return "the end of its output"

        return SimpleNamespace(alive=lambda: pid in self.living, passing=lambda: False, why=why, stop=stop)

    async def resume(self, pin: Pin, order: Order, say: Any) -> Any:
        return None

    async def look(self, runners: Sequence[Runner], handles: Sequence[Any]) -> dict[int, Ending]:
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
        self.stopped.append(runner.number)
        self._kill(runner.pid)

    async def tail(self, runner: Runner) -> str:
        return f"output of {runner.number}"

    def _kill(self, pid: int) -> None:
        if task := self.living.pop(pid, None):
            task.cancel()

    # -- a runner -----------------------------------------------------------------------------------------------------

    async def _runner(self, pid: int, order: Order) -> None:
        try:
            await asyncio.sleep(0.01)
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
            say(node, "skipped", message=f"skipped: {name} has failed in this run")
            statuses[node] = "skipped"
        for node in sorted(
            (n for n in made.nodes if n != DOCS_NODE), key=lambda n: (n in self.last, self._depth(n), n)
        ):
            if self._is_skipped(node, statuses):
                statuses[node] = "skipped"
                say(node, "skipped", message="skipped for what is above it")
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
            await asyncio.sleep(self.slow.get(node, 0.002))
            made = new_id() if table and status == "success" else None
            if table and made:
                self.run.enter(table, token, self._version(table, made, reads), kept=False)
                self.built.append((me.number, node))
        except TakenAway:
            say(node, "error", error="was given to another runner", fenced=True)
            return "error"
        say(node, status, made=made, reads=reads, error="" if status in GOOD else f"{node} is bad")
        return status

    def _version(self, table: str, version: str, reads: dict[str, str]) -> Version:
        return Version(
            table=table, version=version, columns=(), rows=1, bytes=1, files=(), metadata="m", inputs=reads, project="p"
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

    async def follow(self, *nodes: str, attempt: int = 1, restarts: int = 3, along: Sequence[str] = ()) -> Ended:
        """A try of the task of these nodes, named after the first one."""
        task = nodes[0].split(".", 2)[-1]
        name = f"{task}/{attempt}"
        job = Job(task, attempt, nodes, tuple(along), task, joint=nodes[0] in self.joint)
        watch = self.watch
        follow = Follow(watch, job, restarts, self.per_model, self.said.append)
        await watch.enter(name)
        try:
            return await asyncio.wait_for(follow.run(), _LIMIT)
        except Superseded:
            return Ended("superseded", "")
        finally:
            watch.leave(name)


@contextmanager
def quick() -> Iterator[None]:
    """Looks at the records follow one another at once."""
    with mock.patch.object(watching, "_EVERY", 0.002):
        yield
