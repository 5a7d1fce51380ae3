"""Answers tasks' queries about a run, and starts and stops the run's runners. A process has one `Watch` per run."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from busco.lake.layout import new_id
from busco.lake.records import FINAL, RUNNER_NODE, Follower, LakeRecord, Order, Result, Runner
from busco.orchestration.async_aws import Conflict
from busco.orchestration.launch import CannotStart, Say, Starting, client_token
from busco.orchestration.patience import patiently, start_patiently, text_for_log
from busco.orchestration.polling import Launched, Polled

_TESTS = "tests/"  # the prefix of the names of orders for joint tests
_NONE: Mapping[str, int] = MappingProxyType({})


class StartFailed(Exception):
    """A runner could not be started, or ended before it registered; the text states why."""


@dataclass
class Refused:
    """A placeholder for a runner that could not be started."""

    text: str

    def alive(self) -> bool:
        return False

    def passing(self) -> bool:
        return False

    async def why(self) -> str:
        return self.text

    async def stop(self, reason: str) -> None: ...


class Watch(Polled):
    """Answers queries about one epoch of a run, and starts and stops its runners."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._plans: dict[int, tuple[Result, frozenset[str]]] = {}
        # joint tests that need a runner
        self._gathered: list[str] = []
        # the asyncio task that returns the name of the order that these tests share
        self._gathering: asyncio.Task[str] | None = None
        # runners that were stopped here because nobody needed them
        self._stopped: set[int] = set()
        # for each follower, the joint test for which it requested a runner
        self._gathers: dict[str, str] = {}
        # by the name of the order: the starts in progress, each with the tests that the runner will run
        self._starting: dict[str, tuple[asyncio.Task[None], tuple[str, ...]]] = {}

    # -- queries and starting runners ---------------------------------------------------------------------------------

    def final(self, node: str, runner: int) -> Result | None:
        """Returns a runner's final result for a node, or None if there is no result that counts.

        A result does not count if another runner has taken over the node (R4), or if a table that the node read has
        since been rebuilt.
        """
        result = self.results.get((node, runner))
        if result is None or result.status not in FINAL or result.fenced:
            return None
        return None if self._replaced & set(result.reads.values()) else result

    def covers(self, number: int, node: str) -> bool:
        """Whether a runner has reported, or may still report, a final result for a node."""
        runner = self.runners[number]
        if (node, number) in self.results and self.results[(node, number)].status in FINAL:
            return self.final(node, number) is not None
        if runner.kind == "solo":
            return node in runner.nodes
        report = self.results.get((RUNNER_NODE, number))
        return report is None or report.plan is None or node in self._plan(number, report)

    def _plan(self, number: int, report: Result) -> frozenset[str]:
        known = self._plans.get(number)
        if known is None or known[0] is not report:
            known = self._plans[number] = (report, frozenset(report.plan or ()))
        return known[1]

    def running(self, node: str, number: int) -> bool:
        """Whether a runner's latest result for a node shows that the node is still in progress."""
        result = self.results.get((node, number))
        return result is not None and result.status not in FINAL

    def shared_busy(self) -> bool:
        """Whether a shared runner is alive."""
        return any(r.kind == "shared" and not self.gone(n) for n, r in self.runners.items())

    async def ensure(self, order: Order, say: Say, before: Mapping[str, int] = _NONE, follower: str = "") -> None:
        """Starts a runner for an order, after setting the order's generation and token.

        Does nothing if the last runner for an order of this name is alive or may have registered since the last poll.

        Args:
            before: the newest generation of each order when the requesting try began; failures up to that generation
                are not counted.
            follower: the name of the requesting try.

        Raises:
            StartFailed: the runner that this follower waited for ended before it registered.
        """
        name = order.name
        at_call = self.launched.get(name)
        async with self._locks[name]:
            if any(r.order == name and not self.gone(n) for n, r in self.runners.items()):
                return
            last, newest = self.launched.get(name), self.orders.get(name)
            if newest is not None and (last is None or last.order.generation < newest.generation):
                # another triggerer has written the next order
                last = await self._resumed(newest, say)
            if last is not None and not self._registered_and_gone(last.order):
                if last.resumed:
                    # this process can't tell when the runner ended, but it knows whether the runner was ordered before
                    # the try began
                    is_waiting = last.order.generation > before.get(name, 0)
                else:
                    # a follower that waited for the lock has waited for this runner, which may have ended by now
                    is_waiting = last.ended_at is None or last is not at_call
                if is_waiting:
                    last.waiting.add(follower)
                # a poll that began before the runner ended may not have seen it register
                if last.ended_at is None or self._polls < last.ended_at + 2:
                    return
                # followers that waited for this runner fail with it; a follower that comes later gets a new runner
                is_mine = follower in last.waiting and not last.is_abandoned
                if is_mine and not self._registered(last.order) and not self._starts_again(last, before):
                    raise StartFailed(await self._why(last))
            generation = self.orders[name].generation + 1 if name in self.orders else 1
            token = client_token(self.settings.environment, self.pin, name, generation)
            order = order.model_copy(update={"generation": generation, "token": token, "written": new_id()})
            try:
                await self._put(self.layout.order(name, generation), order, None)
            except Conflict:
                # another triggerer is starting this runner: the next poll will show it
                return
            self.orders[name] = order
            self.launched[name] = Launched(order, await self._started(order, say), waiting={follower})

    def _starts_again(self, launched: Launched, before: Mapping[str, int]) -> bool:
        """Whether to replace a runner that ended before it registered. It is replaced if its error was transient and
        not too many runners have ended that way since the last one registered or since the requesting try began."""
        name = launched.order.name
        worked = max((runner.generation for runner in self.runners.values() if runner.order == name), default=0)
        in_vain = launched.order.generation - max(worked, before.get(name, 0))
        return launched.handle.passing() and in_vain <= self.settings.runner_restarts

    async def _why(self, launched: Launched) -> str:
        """Returns why a runner ended. The reason is read only once, since many followers may wait for one runner."""
        if launched.why is None:
            launched.why = await text_for_log("the reason why the runner ended", launched.handle.why)
        return launched.why

    async def _started(self, order: Order, say: Say) -> Starting:
        name = f"starting a runner for {order.name}"
        try:
            return await start_patiently(name, lambda: self.launcher.start(self.pin, order, say))
        except CannotStart as error:
            return Refused(str(error))

    async def _resumed(self, order: Order, say: Say) -> Launched | None:
        """Finds the runner of an order that was not started here, or whose start was interrupted. Returns None if the
        runner has registered or can't be found from here."""
        if self._registered(order):
            return None
        what = f"finding the runner of {order.name}"
        try:
            handle = await start_patiently(what, lambda: self.launcher.resume(self.pin, order, say))
        except CannotStart as error:
            handle = Refused(str(error))
        if handle is None:
            return None
        self.launched[order.name] = Launched(order, handle, resumed=True)
        return self.launched[order.name]

    def _registered(self, order: Order) -> bool:
        return any((r.order, r.generation) == (order.name, order.generation) for r in self.runners.values())

    def _registered_and_gone(self, order: Order) -> bool:
        """Whether the runner of an order has registered, and has since been found to be gone or given up on."""
        known = [n for n, r in self.runners.items() if (r.order, r.generation) == (order.name, order.generation)]
        return bool(known) and all(self.gone(number) for number in known)

    async def gather(
        self, node: str, size: str, say: Say, before: Mapping[str, int] = _NONE, follower: str = ""
    ) -> None:
        """Starts one runner for all joint tests for which a runner is requested within two polls.

        Args:
            before: as for `ensure`.
            follower: the name of the requesting try. The runner is stopped once all tries that requested it have left.

        Raises:
            StartFailed: the runner could not be started.
        """
        self._gathers[follower] = node
        found = next((o for o in self.orders.values() if node in o.nodes and o.name.startswith(_TESTS)), None)
        if found is not None:
            await self.ensure(found, say, before, follower)
            return
        if node not in self._gathered:
            self._gathered.append(node)
        if self._gathering is None:
            self._gathering = asyncio.create_task(self._gather(size, say))
        name = await asyncio.shield(self._gathering)
        launched = self.launched.get(name)
        if launched is not None and isinstance(launched.handle, Refused):
            raise StartFailed(launched.handle.text)

    async def _gather(self, size: str, say: Say) -> str:
        try:
            await self.changed()
            await self.changed()
        finally:
            gathered, self._gathered, self._gathering = self._gathered, [], None
        name = f"{_TESTS}{new_id()[:8]}"
        nodes = tuple(sorted(self._needed_tests() & set(gathered)))
        if nodes:
            order = Order(name=name, generation=0, kind="solo", nodes=nodes, size=size)
            starting = asyncio.create_task(self.ensure(order, say))
            self._starting[name] = (starting, nodes)
            try:
                await starting
            finally:
                del self._starting[name]
            if name in self.launched:
                self.launched[name].waiting |= {one for one, node in self._gathers.items() if node in nodes}
        return name

    def _needed_tests(self) -> set[str]:
        """Returns the joint tests for which a current follower has requested a runner."""
        return {node for follower, node in self._gathers.items() if follower in self.followers}

    def runner_word(self, number: int) -> Result | None:
        """Returns a runner's final report on itself; None if the runner has not written one."""
        report = self.results.get((RUNNER_NODE, number))
        return report if report and report.status in FINAL else None

    async def read_log(self, node: str, runner: int) -> str:
        """Returns dbt's log of a node, or ''. Never raises, since only a task's log needs this text."""

        async def read() -> str:
            stored = await self.objects.get(self.layout.log(node, runner))
            return stored[0].decode(errors="replace") if stored else ""

        return await text_for_log(f"dbt's log of {node}", read)

    async def tail(self, runner: Runner) -> str:
        """Returns the end of a runner's output, or ''. Never raises, since only a task's log needs this text."""
        return await text_for_log(f"the output of runner {runner.number}", lambda: self.launcher.tail(runner))

    async def read_follower(self, task: str) -> tuple[Follower, str] | None:
        """Returns the follower record of a task in this epoch and the record's ETag; None if there is no record."""
        key = self.layout.follower(task)
        stored = await patiently(f"reading {key}", lambda: self.objects.get(key))
        return (Follower.model_validate_json(stored[0]), stored[1]) if stored else None

    async def write_follower(self, follower: Follower, etag: str | None) -> None:
        """Replaces a task's follower record if it still has `etag`; if `etag` is None, creates the record.

        Raises:
            Conflict: the record has changed, or already exists.
        """
        await self._put(self.layout.follower(follower.task), follower, etag)

    async def _put(self, key: str, record: LakeRecord, etag: str | None) -> None:
        body = record.model_dump_json()
        await patiently(f"writing {key}", lambda: self.objects.put(key, body, etag))

    # -- stopping runners ---------------------------------------------------------------------------------------------

    async def release(self, name: str, shared: str, reason: str, elsewhere: int = 0) -> None:
        """Stops the runners that a cancelled follower leaves behind (R10).

        The runner of the follower's own order, which has the follower's name, is always stopped. The runner that the
        follower was following, and any runner that is still being started for the order `shared` or for the follower's
        joint test, are stopped unless another follower needs them. When the last follower leaves, every runner that is
        alive or being started is stopped.

        Args:
            elsewhere: the number of other tasks of the run that Airflow is waiting for. If this process has fewer
                followers than that, some tasks are followed in another triggerer, and only the runner of the
                follower's own order is stopped.

        Raises:
            Exception: a runner could not be stopped, despite the retries of `patiently`. By then, the method has also
                tried to stop the others.
        """
        number, node = self.followers.pop(name, 0), self._gathers.pop(name, "")
        if elsewhere > len(self.followers):
            await self.abandon(name, reason)
            return
        if not self.followers:
            living = [runner for number, runner in self.runners.items() if not self.gone(number)]
            await _all(
                *(self.abandon(order, reason) for order in {name, *self._under_way()}),
                *(self._stop(runner, reason) for runner in living),
            )
            return
        followed = set(self.followers.values())
        unwanted = {name, *self._joint_orders(node)}
        if number == 0 and 0 not in followed and shared in self.orders and not self._registered(self.orders[shared]):
            unwanted.add(shared)
        ends = [self.abandon(order, reason) for order in unwanted]
        # a follower that has no runner yet may still choose this one
        if number and not {number, 0} & followed:
            ends.append(self._stop(self.runners[number], reason))
        await _all(*ends)

    def _under_way(self) -> set[str]:
        """Returns the names of the orders whose runners may be alive or may still be started."""
        registered = {(runner.order, runner.generation) for runner in self.runners.values()}
        unseen = {name for name, order in self.orders.items() if (name, order.generation) not in registered}
        return unseen | {name for name, one in self.launched.items() if one.handle.alive()} | set(self._starting)

    def _joint_orders(self, node: str) -> list[str]:
        """Returns the names of the orders that include the joint test `node` but no test that a follower needs."""
        tests = {name: nodes for name, (_, nodes) in self._starting.items()}
        tests |= {order.name: order.nodes for order in self.orders.values() if order.name.startswith(_TESTS)}
        needed = self._needed_tests()
        return [name for name, nodes in tests.items() if node in nodes and not needed & {*nodes}]

    async def abandon(self, name: str, reason: str) -> None:
        """Stops the runner of the order `name`, even if it is still being started, has not registered yet, or was
        started by another triggerer."""
        if name in self._starting:
            starting, _ = self._starting[name]
            starting.cancel()
            await asyncio.wait({starting})
        launched, order = self.launched.get(name), self.orders.get(name)
        living = [r for r in self.runners.values() if r.order == name and not self.gone(r.number)]
        ends = [self._stop(runner, reason) for runner in living]
        if launched is not None:
            launched.is_abandoned = True
            if launched.handle.alive() and launched.order.generation not in {runner.generation for runner in living}:
                handle = launched.handle
                ends.append(patiently(f"stopping the runner of {name}", lambda: handle.stop(reason)))
        if order is not None and not self._registered(order):
            unknown = order
            if launched is None or launched.order.generation < order.generation:
                ends.append(patiently(f"stopping the runner of {name}", lambda: self.launcher.discard(unknown, reason)))
        await _all(*ends)

    async def _stop(self, runner: Runner, reason: str) -> None:
        """Stops a runner unless a task has begun to follow it. Does nothing if the runner was already stopped here."""
        if runner.number in self._stopped:
            return
        self._stopped.add(runner.number)

        async def stop() -> None:
            # a task that never requested this runner, or that has begun in the meantime, may be following it
            if runner.number in self.followers.values():
                self._stopped.discard(runner.number)
            elif not self.gone(runner.number):
                await self.launcher.stop(runner, reason)

        try:
            await patiently(f"stopping runner {runner.number}", stop)
        except BaseException:
            self._stopped.discard(runner.number)
            raise


async def _all(*ends: Coroutine[Any, Any, None]) -> None:
    """Awaits all coroutines, even if some fail.

    Raises:
        Exception: the error of the first coroutine that failed.
    """
    for found in await asyncio.gather(*ends, return_exceptions=True):
        if isinstance(found, BaseException):
            raise found
