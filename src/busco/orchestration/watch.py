"""What the tasks of a run ask of it, and how they have runners started: one for each run and process."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from busco.lake.layout import new_id
from busco.lake.records import FINAL, RUNNER_NODE, Follower, LakeRecord, Order, Result, Runner
from busco.orchestration.async_aws import Conflict
from busco.orchestration.launch import CannotStart, Say, Starting, client_token
from busco.orchestration.patience import patiently, start_patiently, text_for_log
from busco.orchestration.polling import Polled, Slot

_TESTS = "tests/"  # orders for joint tests


class StartFailed(Exception):
    """A runner ended before it had registered itself, or couldn't be started; the text says why."""


@dataclass(frozen=True)
class Began:
    """What was there when a try began: `looks` is how many looks there had been in this triggerer, `orders` the newest
    generation of each order for several tasks. A start that had failed by then is not the failure of this try."""

    looks: int = 0
    orders: Mapping[str, int] = field(default_factory=dict)

    def after(self, slot: Slot) -> bool:
        """Whether the try began after a runner had ended that never registered itself."""
        if slot.resumed:
            # when it ended is not known here, but whether it was ordered before is
            return slot.order.generation <= self.orders.get(slot.order.name, 0)
        return slot.ended_at is not None and slot.ended_at < self.looks


_ALWAYS = Began()


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

    async def ensure(self, wanted: Order, say: Say, since: Began = _ALWAYS) -> None:
        """Has a runner started for an order of this name, unless the last one is alive or may have registered itself
        since the records were looked at. Its generation and token are set here.

        Args:
            since: what was there when the try that asks began: what had failed before is not its failure.

        Raises:
            StartFailed: the last one ended without registering itself.
        """
        name = wanted.name
        async with self._locks[name]:
            if any(r.order == name and not self.gone(n) for n, r in self.runners.items()):
                return
            slot = self.slots.get(name) or await self._resumed(name, say)
            if slot is not None and not self._was_gone(slot.order):
                if slot.handle.alive():
                    return
                if slot.ended_at is None:
                    slot.ended_at = self._looks
                # a look that began before it ended may not have seen it register
                if self._looks < slot.ended_at + 2:
                    return
                # whoever waited for it fails with it; for a task that comes later another one is started
                waited = self._looks < slot.ended_at + 10 and not since.after(slot)
                may_pass = slot.handle.passing() and slot.order.generation <= self.settings.runner_restarts
                if waited and not may_pass and not self._registered(slot.order):
                    raise StartFailed(await text_for_log("why its runner ended", slot.handle.why))
            generation = self.orders[name].generation + 1 if name in self.orders else 1
            token = client_token(self.settings.environment, self.pin, name, generation)
            order = wanted.model_copy(update={"generation": generation, "token": token, "written": new_id()})
            try:
                await self._put(self.layout.order(name, generation), order, None)
            except Conflict:
                # another triggerer has it started: a look at the records will show it
                return
            self.orders[name] = order
            self.slots[name] = Slot(order, await self._started(order, say))

    async def _started(self, order: Order, say: Say) -> Starting:
        name = f"starting a runner for {order.name}"
        try:
            return await start_patiently(name, lambda: self.launcher.start(self.pin, order, say))
        except CannotStart as error:
            return Refused(str(error))

    async def _resumed(self, name: str, say: Say) -> Slot | None:
        """The runner of an order that was not begun here, or whose start was interrupted."""
        order = self.orders.get(name)
        if order is None or self._registered(order):
            return None
        what = f"finding the runner of {order.name}"
        try:
            handle = await start_patiently(what, lambda: self.launcher.resume(self.pin, order, say))
        except CannotStart as error:
            handle = Refused(str(error))
        if handle is None:
            return None
        self.slots[name] = Slot(order, handle, resumed=True)
        return self.slots[name]

    def _registered(self, order: Order) -> bool:
        return any((r.order, r.generation) == (order.name, order.generation) for r in self.runners.values())

    def _was_gone(self, order: Order) -> bool:
        """Whether the runner of an order has registered itself and was seen gone, or given up."""
        known = [n for n, r in self.runners.items() if (r.order, r.generation) == (order.name, order.generation)]
        return bool(known) and all(self.gone(number) for number in known)

    async def gather(self, node: str, size: str, say: Say, since: Began = _ALWAYS, follower: str = "") -> None:
        """Has one runner started for all joint tests that ask for it within two looks; `since` as for `ensure`.

        Args:
            follower: who asks; the runner is ended when no follower that has asked is left.

        Raises:
            StartFailed: it could not start.
        """
        self._gathers[follower] = node
        asked = next((o for o in self.orders.values() if node in o.nodes and o.name.startswith(_TESTS)), None)
        if asked is not None:
            await self.ensure(asked, say, since)
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
        return name

    def _wanted(self) -> set[str]:
        """The joint tests that somebody follows, and has asked for a runner for."""
        return {node for follower, node in self._gathers.items() if follower in self.followers}

    async def abandon(self, name: str, reason: str) -> None:
        """Ends the runner that was started under `name`, whether it is being started, has not registered itself yet, or
        was started by another triggerer."""
        if name in self._starting:
            starting, _ = self._starting[name]
            starting.cancel()
            await asyncio.wait({starting})
        slot, order = self.slots.get(name), self.orders.get(name)
        for runner in list(self.runners.values()):
            if runner.order == name and not self.gone(runner.number):
                await self.launcher.stop(runner, reason)
        if slot is not None:
            await slot.handle.stop(reason)
        elif order is not None and not self._registered(order):
            await self.launcher.discard(order, reason)

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

    async def release(self, name: str, shared: str, reason: str, elsewhere: int = 0) -> None:
        """Ends what a cancelled follower leaves behind (R10): the runner of its own order, which has its name, and the
        one that it followed, or that was started under `shared` or for its joint test, if nobody else follows it.

        Args:
            elsewhere: how many tasks of the run Airflow waits for: more than are here follow in another triggerer.
        """
        number = self.followers.pop(name, 0)
        await self.abandon(name, reason)
        others = set(self.followers.values())
        if elsewhere > len(self.followers):
            return
        node, asked = self._gathers.pop(name, ""), {name: nodes for name, (_, nodes) in self._starting.items()}
        asked |= {order.name: order.nodes for order in self.orders.values()}
        for order, nodes in asked.items():
            if order.startswith(_TESTS) and node in nodes and not self._wanted() & set(nodes):
                await self.abandon(order, reason)
        if number == 0 and not others:
            await self.abandon(shared, reason)
        elif number and not {number, 0} & others and not self.gone(number):
            await self.launcher.stop(self.runners[number], reason)
