"""What the tasks of a run ask of it, and how they have runners started: one for each run and process."""

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
from busco.orchestration.polling import Polled, Slot

_TESTS = "tests/"  # orders for joint tests
_NONE: Mapping[str, int] = MappingProxyType({})


class StartFailed(Exception):
    """A runner ended before it had registered itself, or couldn't be started; the text says why."""


@dataclass
class Refused:
    """What stands for a runner that could not be started."""

    text: str

    def alive(self) -> bool:
        return False

    def passing(self) -> bool:
        return False

    async def why(self) -> str:
        return self.text

    async def stop(self, reason: str) -> None: ...


class Watch(Polled):
    """What followers ask of one epoch of a run, and how its runners are started and ended."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._plans: dict[int, tuple[Result, frozenset[str]]] = {}
        # joint tests that want a runner, and the order that they will share
        self._gathered: list[str] = []
        self._gathering: asyncio.Task[str] | None = None
        # runners that were stopped here because nobody needed them
        self._stopped: set[int] = set()
        # which test each follower has asked for; the starts that are under way and their tests, by the order's name
        self._gathers: dict[str, str] = {}
        self._starting: dict[str, tuple[asyncio.Task[None], tuple[str, ...]]] = {}

    # -- what followers ask -------------------------------------------------------------------------------------------

    def final(self, node: str, runner: int) -> Result | None:
        """A runner's final word on a node, if it counts: it wasn't fenced off (R4), and nothing that it read was built
        anew since."""
        result = self.results.get((node, runner))
        if result is None or result.status not in FINAL or result.fenced:
            return None
        return None if self._replaced & set(result.reads.values()) else result

    def covers(self, number: int, node: str) -> bool:
        """Whether a runner gives, or may yet give, a final result for a node."""
        runner = self.runners[number]
        if (node, number) in self.results and self.results[(node, number)].status in FINAL:
            return self.final(node, number) is not None
        if runner.kind == "solo":
            return node in runner.nodes
        word = self.results.get((RUNNER_NODE, number))
        return word is None or word.plan is None or node in self._plan(number, word)

    def _plan(self, number: int, word: Result) -> frozenset[str]:
        known = self._plans.get(number)
        if known is None or known[0] is not word:
            known = self._plans[number] = (word, frozenset(word.plan or ()))
        return known[1]

    def running(self, node: str, number: int) -> bool:
        """Whether a runner was at a node when it was last heard of."""
        result = self.results.get((node, number))
        return result is not None and result.status not in FINAL

    def shared_busy(self) -> bool:
        """Whether a shared runner is at work."""
        return any(r.kind == "shared" and not self.gone(n) for n, r in self.runners.items())

    async def ensure(self, wanted: Order, say: Say, before: Mapping[str, int] = _NONE, follower: str = "") -> None:
        """Has a runner started for an order of this name, unless the last one is alive or may have registered itself
        since the records were looked at. Its generation and token are set here.

        Args:
            before: the newest generation of each order when the try that asks began. What had failed by then is not
                its failure.
            follower: who asks.

        Raises:
            StartFailed: the runner that this follower waited for ended without registering itself.
        """
        name = wanted.name
        known = self.slots.get(name)
        async with self._locks[name]:
            if any(r.order == name and not self.gone(n) for n, r in self.runners.items()):
                return
            slot, newest = self.slots.get(name), self.orders.get(name)
            if newest is not None and (slot is None or slot.order.generation < newest.generation):
                # another triggerer has ordered the next one
                slot = await self._resumed(newest, say)
            if slot is not None and not self._was_gone(slot.order):
                if slot.resumed:
                    # when it ended is not known here, but whether it was ordered before the try began is
                    is_waiting = slot.order.generation > before.get(name, 0)
                else:
                    # whoever waited here while it was being started has waited for it, even if it has ended by now
                    is_waiting = slot.ended_at is None or slot is not known
                if is_waiting:
                    slot.waiting.add(follower)
                # a look that began before it ended may not have seen it register
                if slot.ended_at is None or self._looks < slot.ended_at + 2:
                    return
                # whoever waited for it fails with it; for a task that comes later another one is started
                is_mine = follower in slot.waiting and not slot.is_abandoned
                if is_mine and not self._registered(slot.order) and not self._starts_again(slot, before):
                    raise StartFailed(await self._why(slot))
            generation = self.orders[name].generation + 1 if name in self.orders else 1
            token = client_token(self.settings.environment, self.pin, name, generation)
            order = wanted.model_copy(update={"generation": generation, "token": token, "written": new_id()})
            try:
                await self._put(self.layout.order(name, generation), order, None)
            except Conflict:
                # another triggerer has it started: a look at the records will show it
                return
            self.orders[name] = order
            self.slots[name] = Slot(order, await self._started(order, say), waiting={follower})

    def _starts_again(self, slot: Slot, before: Mapping[str, int]) -> bool:
        """Whether a runner that ended before it registered itself is replaced: what ended it may be over by now, and
        few have ended so since the last one that registered, or since the try that asks began."""
        name = slot.order.name
        worked = max((runner.generation for runner in self.runners.values() if runner.order == name), default=0)
        in_vain = slot.order.generation - max(worked, before.get(name, 0))
        return slot.handle.passing() and in_vain <= self.settings.runner_restarts

    async def _why(self, slot: Slot) -> str:
        """Why a runner has ended. It is asked for once: a hundred followers may have waited for it."""
        if slot.why is None:
            slot.why = await text_for_log("why its runner ended", slot.handle.why)
        return slot.why

    async def _started(self, order: Order, say: Say) -> Starting:
        name = f"starting a runner for {order.name}"
        try:
            return await start_patiently(name, lambda: self.launcher.start(self.pin, order, say))
        except CannotStart as error:
            return Refused(str(error))

    async def _resumed(self, order: Order, say: Say) -> Slot | None:
        """The runner of an order that was not started here, or whose start was interrupted; None if it has registered
        itself, or can't be known here."""
        if self._registered(order):
            return None
        what = f"finding the runner of {order.name}"
        try:
            handle = await start_patiently(what, lambda: self.launcher.resume(self.pin, order, say))
        except CannotStart as error:
            handle = Refused(str(error))
        if handle is None:
            return None
        self.slots[order.name] = Slot(order, handle, resumed=True)
        return self.slots[order.name]

    def _registered(self, order: Order) -> bool:
        return any((r.order, r.generation) == (order.name, order.generation) for r in self.runners.values())

    def _was_gone(self, order: Order) -> bool:
        """Whether the runner of an order has registered itself and was seen gone, or given up."""
        known = [n for n, r in self.runners.items() if (r.order, r.generation) == (order.name, order.generation)]
        return bool(known) and all(self.gone(number) for number in known)

    async def gather(
        self, node: str, size: str, say: Say, before: Mapping[str, int] = _NONE, follower: str = ""
    ) -> None:
        """Has one runner started for all joint tests that ask for it within two looks; `before` as for `ensure`.

        Args:
            follower: who asks; the runner is ended when no follower that has asked is left.

        Raises:
            StartFailed: it could not start.
        """
        self._gathers[follower] = node
        asked = next((o for o in self.orders.values() if node in o.nodes and o.name.startswith(_TESTS)), None)
        if asked is not None:
            await self.ensure(asked, say, before, follower)
            return
        if node not in self._gathered:
            self._gathered.append(node)
        if self._gathering is None:
            self._gathering = asyncio.create_task(self._gather(size, say))
        name = await asyncio.shield(self._gathering)
        slot = self.slots.get(name)
        if slot is not None and isinstance(slot.handle, Refused):
            raise StartFailed(slot.handle.text)

    async def _gather(self, size: str, say: Say) -> str:
        try:
            await self.changed()
            await self.changed()
        finally:
            gathered, self._gathered, self._gathering = self._gathered, [], None
        name = f"{_TESTS}{new_id()[:8]}"
        nodes = tuple(sorted(self._wanted() & set(gathered)))
        if nodes:
            order = Order(name=name, generation=0, kind="solo", nodes=nodes, size=size)
            starting = asyncio.create_task(self.ensure(order, say))
            self._starting[name] = (starting, nodes)
            try:
                await starting
            finally:
                del self._starting[name]
            if name in self.slots:
                self.slots[name].waiting |= {one for one, node in self._gathers.items() if node in nodes}
        return name

    def _wanted(self) -> set[str]:
        """The joint tests that somebody follows, and has asked for a runner for."""
        return {node for follower, node in self._gathers.items() if follower in self.followers}

    def runner_word(self, number: int) -> Result | None:
        """What a runner said of itself at its end; None where it didn't come to that."""
        word = self.results.get((RUNNER_NODE, number))
        return word if word and word.status in FINAL else None

    async def read_log(self, node: str, runner: int) -> str:
        """dbt's log of a node; '' where there is none. It is for the task's log alone: this never fails."""

        async def read() -> str:
            stored = await self.objects.get(self.layout.log(node, runner))
            return stored[0].decode(errors="replace") if stored else ""

        return await text_for_log(f"dbt's log of {node}", read)

    async def tail(self, runner: Runner) -> str:
        """The end of a runner's output; '' where there is none. It is for the task's log alone: this never fails."""
        return await text_for_log(f"the output of runner {runner.number}", lambda: self.launcher.tail(runner))

    async def read_follower(self, task: str) -> tuple[Follower, str] | None:
        """The record of a task in this epoch, with its ETag."""
        key = self.layout.follower(task)
        stored = await patiently(f"reading {key}", lambda: self.objects.get(key))
        return (Follower.model_validate_json(stored[0]), stored[1]) if stored else None

    async def write_follower(self, follower: Follower, etag: str | None) -> None:
        """Writes the record of a task, if the one there still has `etag`; None: if there is none.

        Raises:
            Conflict: it has changed.
        """
        await self._put(self.layout.follower(follower.task), follower, etag)

    async def _put(self, key: str, record: LakeRecord, etag: str | None) -> None:
        body = record.model_dump_json()
        await patiently(f"writing {key}", lambda: self.objects.put(key, body, etag))

    # -- what is ended ------------------------------------------------------------------------------------------------

    async def release(self, name: str, shared: str, reason: str, elsewhere: int = 0) -> None:
        """Ends what a cancelled follower leaves behind (R10): the runner of its own order, which has its name, and the
        one that it followed, or that is started under `shared` or for its joint test, if nobody else needs it. The
        last follower ends everything that is alive or being started.

        Args:
            elsewhere: how many tasks of the run Airflow waits for: more than are here follow in another triggerer.

        Raises:
            Exception: something could not be ended, for as long as `patiently` tries; all else was ended.
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
        # one that follows no runner yet may come to follow this one
        if number and not {number, 0} & followed:
            ends.append(self._stop(self.runners[number], reason))
        await _all(*ends)

    def _under_way(self) -> set[str]:
        """The orders of which a runner may be alive, or may yet be started."""
        registered = {(runner.order, runner.generation) for runner in self.runners.values()}
        unseen = {name for name, order in self.orders.items() if (name, order.generation) not in registered}
        return unseen | {name for name, slot in self.slots.items() if slot.handle.alive()} | set(self._starting)

    def _joint_orders(self, node: str) -> list[str]:
        """The orders for a joint test, and for others beside it, that no follower waits for."""
        asked = {name: nodes for name, (_, nodes) in self._starting.items()}
        asked |= {order.name: order.nodes for order in self.orders.values() if order.name.startswith(_TESTS)}
        needed = self._wanted()
        return [name for name, nodes in asked.items() if node in nodes and not needed & {*nodes}]

    async def abandon(self, name: str, reason: str) -> None:
        """Ends the runner that was started under `name`, whether it is being started, has not registered itself yet, or
        was started by another triggerer."""
        if name in self._starting:
            starting, _ = self._starting[name]
            starting.cancel()
            await asyncio.wait({starting})
        slot, order = self.slots.get(name), self.orders.get(name)
        living = [r for r in self.runners.values() if r.order == name and not self.gone(r.number)]
        ends = [self._stop(runner, reason) for runner in living]
        if slot is not None:
            slot.is_abandoned = True
            if slot.handle.alive() and slot.order.generation not in {runner.generation for runner in living}:
                handle = slot.handle
                ends.append(patiently(f"stopping the runner of {name}", lambda: handle.stop(reason)))
        if order is not None and not self._registered(order):
            unknown = order
            if slot is None or slot.order.generation < order.generation:
                ends.append(patiently(f"stopping the runner of {name}", lambda: self.launcher.discard(unknown, reason)))
        await _all(*ends)

    async def _stop(self, runner: Runner, reason: str) -> None:
        """Stops a runner once, unless it is followed by then."""
        if runner.number in self._stopped:
            return
        self._stopped.add(runner.number)

        async def stop() -> None:
            # also one of joint tests that is followed by a task that has not asked for it, or has begun meanwhile
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
    """Carries all of them out, whether or not some fail.

    Raises:
        Exception: what the first one that failed has raised.
    """
    for found in await asyncio.gather(*ends, return_exceptions=True):
        if isinstance(found, BaseException):
            raise found
