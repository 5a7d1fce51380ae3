"""One poller for each run: it reads the run's records once for all of the tasks that follow them."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from busco.lake.layout import EnvironmentLayout, RunLayout, new_id
from busco.lake.records import FINAL, RUNNER_NODE, Ending, Follower, LakeRecord, Order, Pin, Result, Runner
from busco.orchestration.async_aws import AsyncObjects, Conflict, shared
from busco.orchestration.launch import CannotStart, Launcher, Say, Starting, client_token
from busco.orchestration.silence import Silence
from busco.settings import Settings

log = logging.getLogger(__name__)

_EVERY = 0.3  # seconds between two looks at a run's records
_TESTS = "tests/"  # orders for joint tests
_A_TURN = 50  # followers that are woken, or records that are read, in one turn of the loop
_STUMBLES = 150  # looks that may fail in a row (a minute) before followers are told


class StartFailed(Exception):
    """A runner ended before it had registered itself, or couldn't be started; the text says why."""


@dataclass
class Slot:
    """A runner that was started for an order: `ended_at` is the number of the look at which it was first seen gone."""

    order: Order
    handle: Starting
    ended_at: int | None = None


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


@dataclass
class Watch:
    """What is known of one epoch of a run, kept up to date while anybody follows it.

    `orders` has the newest one under each name; `endings` the runners that were seen gone; `followers` which runner
    each try of a task follows, 0 where it has none yet.
    """

    settings: Settings
    pin: Pin
    launcher: Launcher
    objects: AsyncObjects
    runners: dict[int, Runner] = field(default_factory=dict)
    endings: dict[int, Ending] = field(default_factory=dict)
    results: dict[tuple[str, int], Result] = field(default_factory=dict)
    orders: dict[str, Order] = field(default_factory=dict)
    followers: dict[str, int] = field(default_factory=dict)
    problem: BaseException | None = None
    slots: dict[str, Slot] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.layout = RunLayout(EnvironmentLayout(self.settings.environment).epoch(self.pin.run, self.pin.epoch))
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._seen: dict[str, str] = {}
        self._waiting: list[asyncio.Future[None]] = []
        self._plans: dict[int, tuple[Result, frozenset[str]]] = {}
        self._task: asyncio.Task[None] | None = None
        self._stumbles = 0
        self._looks = 0
        self._silence = Silence(self.settings.runner_silence)
        # runners that gave no sign of life, and were stopped for it
        self._silent: set[int] = set()
        # versions that were made in this run and made anew by a later runner
        self._replaced: set[str] = set()
        # joint tests that want a runner, and the order that they will share
        self._gathered: list[str] = []
        self._gathering: asyncio.Task[str] | None = None

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

    @property
    def looks(self) -> int:
        """How often the records were looked at."""
        return self._looks

    def gone(self, number: int) -> bool:
        """Whether a runner was seen gone."""
        return number in self.endings

    def running(self, node: str, number: int) -> bool:
        """Whether a runner was at a node when it was last heard of."""
        result = self.results.get((node, number))
        return result is not None and result.status not in FINAL

    def shared_busy(self) -> bool:
        """Whether a shared runner is at work."""
        return any(r.kind == "shared" and not self.gone(n) for n, r in self.runners.items())

    async def ended(self) -> frozenset[int]:
        """The runners that are gone, asked now."""
        unknown = [runner for number, runner in self.runners.items() if not self.gone(number)]
        numbers = tuple(runner.number for runner in unknown)
        gone = await shared(("ended", id(self), numbers), lambda: self.launcher.look(unknown, []))
        return frozenset({*self.endings, *gone})

    async def ensure(self, wanted: Order, say: Say, since: int = 0) -> None:
        """Has a runner started for an order of this name, unless the last one is alive or may have registered itself
        since the records were looked at. Its generation and token are set here.

        Args:
            since: the number of looks when whoever asks began: what was seen to fail before is not told to him.

        Raises:
            StartFailed: the last one ended without registering itself.
        """
        name = wanted.name
        async with self._locks[name]:
            if any(r.order == name and not self.gone(n) for n, r in self.runners.items()):
                return
            slot = self.slots.get(name) or await self._resumed(name, say)
            is_old = slot is not None and slot.ended_at is not None and slot.ended_at < since
            if slot is not None and not is_old and not self._was_gone(slot.order):
                if slot.handle.alive():
                    return
                if slot.ended_at is None:
                    slot.ended_at = self._looks
                # a look that began before it ended may not have seen it register
                if self._looks < slot.ended_at + 2:
                    return
                # whoever waited for it is told; a task that comes later has it started anew
                waited = self._looks < slot.ended_at + 10
                may_pass = slot.handle.passing() and slot.order.generation <= self.settings.runner_restarts
                if waited and not may_pass and not self._registered(slot.order):
                    raise StartFailed(await slot.handle.why())
            generation = self.orders[name].generation + 1 if name in self.orders else 1
            token = client_token(self.settings.environment, self.pin, name, generation)
            order = wanted.model_copy(update={"generation": generation, "token": token})
            try:
                await self.objects.put(self.layout.order(name, generation), order.model_dump_json(), None)
            except Conflict:
                # another triggerer has it started: a look at the records will show it
                return
            self.orders[name] = order
            self.slots[name] = Slot(order, await self._started(order, say))

    async def _started(self, order: Order, say: Say) -> Starting:
        try:
            return await self.launcher.start(self.pin, order, say)
        except CannotStart as error:
            return Refused(str(error))

    async def _resumed(self, name: str, say: Say) -> Slot | None:
        """The runner of an order that was not begun here, or whose start was interrupted."""
        order = self.orders.get(name)
        if order is None or self._registered(order):
            return None
        try:
            handle = await self.launcher.resume(self.pin, order, say)
        except CannotStart as error:
            handle = Refused(str(error))
        if handle is None:
            return None
        self.slots[name] = Slot(order, handle)
        return self.slots[name]

    def _registered(self, order: Order) -> bool:
        return any((r.order, r.generation) == (order.name, order.generation) for r in self.runners.values())

    def _was_gone(self, order: Order) -> bool:
        """Whether the runner of an order has registered itself and was seen gone, or given up."""
        known = [n for n, r in self.runners.items() if (r.order, r.generation) == (order.name, order.generation)]
        return bool(known) and all(self.gone(number) for number in known)

    async def gather(self, node: str, size: str, say: Say, since: int = 0) -> None:
        """Has one runner started for all joint tests that ask for it within two looks; `since` as for `ensure`.

        Raises:
            StartFailed: it could not start.
        """
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
        await self.changed()
        await self.changed()
        nodes, self._gathered, self._gathering = tuple(sorted(self._gathered)), [], None
        name = f"{_TESTS}{new_id()[:8]}"
        await self.ensure(Order(name=name, generation=0, kind="solo", nodes=nodes, size=size), say)
        return name

    async def abandon(self, name: str, reason: str) -> None:
        """Ends the runner that was started under `name`, even if it has not registered itself yet."""
        slot, order = self.slots.get(name), self.orders.get(name)
        if slot is not None:
            await slot.handle.stop(reason)
        elif order is not None:
            await self.launcher.discard(order, reason)

    def runner_word(self, number: int) -> Result | None:
        """What a runner said of itself at its end; None where it didn't come to that."""
        word = self.results.get((RUNNER_NODE, number))
        return word if word and word.status in FINAL else None

    async def read_log(self, node: str, runner: int) -> str:
        stored = await self.objects.get(self.layout.log(node, runner))
        return stored[0].decode(errors="replace") if stored else ""

    async def changed(self) -> None:
        """Waits for the next look at the records."""
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        await waiting
        if self.problem is not None:
            raise self.problem

    async def read_follower(self, task: str) -> tuple[Follower, str] | None:
        stored = await self.objects.get(self.layout.follower(task))
        return (Follower.model_validate_json(stored[0]), stored[1]) if stored else None

    async def write_follower(self, follower: Follower, etag: str | None) -> None:
        await self.objects.put(self.layout.follower(follower.task), follower.model_dump_json(), etag)

    # -- the poller ---------------------------------------------------------------------------------------------------

    async def enter(self, name: str) -> None:
        self.followers[name] = 0
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._poll())
            await self.changed()

    def leave(self, name: str) -> None:
        self.followers.pop(name, None)

    async def release(self, name: str, shared: str, reason: str, elsewhere: int = 0) -> None:
        """Ends what a cancelled follower leaves behind (R10): the runner of its own order, which has its name, and the
        one that it followed, or that was started under `shared`, if nobody else follows it.

        Args:
            elsewhere: how many tasks of the run Airflow waits for: more than are here follow in another triggerer.
        """
        number = self.followers.pop(name, 0)
        await self.abandon(name, reason)
        others = set(self.followers.values())
        if elsewhere > len(self.followers):
            return
        if number == 0 and not others:
            await self.abandon(shared, reason)
        elif number and not {number, 0} & others and not self.gone(number):
            await self.launcher.stop(self.runners[number], reason)

    async def _poll(self) -> None:
        while self.followers:
            try:
                await self._look()
                self._looks += 1
                self._stumbles = 0
            except Exception as error:
                # S3 away for a while: the runner goes on, and so will we
                self._stumbles += 1
                log.warning("run=%s records not readable: %s", self.pin.run, error)
                if self._stumbles >= _STUMBLES:
                    self.problem = error
            await self._wake()
            if self.problem is not None:
                return
            await asyncio.sleep(_EVERY)

    async def _wake(self) -> None:
        """Tells all who wait for a look, some in each turn of the loop: a thousand in one would hold it."""
        waiting, self._waiting = self._waiting, []
        for number, one in enumerate(waiting, 1):
            if not one.done():
                one.set_result(None)
            if number % _A_TURN == 0:
                await asyncio.sleep(0)

    async def _look(self) -> None:
        # liveness first: what a runner wrote before it was seen gone is then in the listing that follows
        unknown = [runner for number, runner in self.runners.items() if not self.gone(number)]
        gone = await self.launcher.look(unknown, [slot.handle for slot in self.slots.values()])
        # not the whole epoch: followers' and tables' records are as many again
        etags = await self.objects.etags(self.layout.prefix, "/")
        for folder in (self.layout.orders, self.layout.results):
            etags |= await self.objects.etags(folder)
        gone = {**gone, **await self._silenced(etags, gone)}
        wanted = [key for key, etag in etags.items() if self._seen.get(key) != etag and self._kind(key)]
        records: dict[str, LakeRecord] = {}
        for begin in range(0, len(wanted), _A_TURN):
            some = wanted[begin : begin + _A_TURN]
            for key, stored in zip(some, await asyncio.gather(*map(self.objects.get, some)), strict=True):
                kind = self._kind(key)
                if stored is not None and kind is not None:
                    records[key] = kind.model_validate_json(stored[0])
        # all in one turn: nobody sees one half of a look
        endings: dict[int, Ending] = {}
        for key, record in records.items():
            if isinstance(record, Result):
                self.results[(record.node, record.runner)] = record
            elif isinstance(record, Runner):
                self.runners[record.number] = record
            elif isinstance(record, Ending):
                endings[record.number] = record
            elif isinstance(record, Order):
                known = self.orders.get(record.name)
                self.orders[record.name] = record if known is None else max(known, record, key=_generation)
            self._seen[key] = etags[key]
        for number, ending in gone.items():
            if number not in endings:
                await self._note(ending)
        self.endings.update({**gone, **endings})
        self._replaced = self._replaced_versions()

    async def _silenced(self, etags: Mapping[str, str], gone: Mapping[int, Ending]) -> dict[int, Ending]:
        """Stops runners that hang; the endings of those that are gone by it, and of those that can't be stopped."""
        living = [number for number in self.runners if not self.gone(number) and number not in gone]
        keys = {number: self.layout.heartbeat(number) for number in living}
        beats = {number: etags[key] for number, key in keys.items() if key in etags}
        reason = f"it gave no sign of life for {self._silence.limit:.0f} s and was stopped"
        ended = {
            number: ending.model_copy(update={"reason": reason, "passing": True})
            for number, ending in gone.items()
            if number in self._silent
        }
        for number in self._silence.hear(beats):
            log.warning("run=%s runner=%s is stopped: no sign of life", self.pin.run, number)
            if number in self._silent:
                # nobody says that it is gone: its host is lost. Should it wake up, the entries' tokens keep it out (R4)
                ended[number] = Ending(number=number, reason=reason, passing=True)
            self._silent.add(number)
            await self.launcher.stop(self.runners[number], reason)
        return ended

    async def _note(self, ending: Ending) -> None:
        """Writes down that a runner was seen gone, before anything is started in its stead."""
        try:
            await self.objects.put(self.layout.ending(ending.number), ending.model_dump_json(), None)
        except Conflict:
            # another triggerer has seen it too
            return

    def _replaced_versions(self) -> set[str]:
        newest: dict[str, tuple[int, str]] = {}
        everything: set[str] = set()
        for (node, number), result in self.results.items():
            if result.made and not result.fenced:
                everything.add(result.made)
                newest[node] = max(newest.get(node, (0, "")), (number, result.made))
        return everything - {version for _, version in newest.values()}

    def _kind(self, key: str) -> type[LakeRecord] | None:
        """What a record of the run is, None for those that nobody follows."""
        name = key[len(self.layout.prefix) :]
        if not name.endswith(".json"):
            return None
        if name.startswith("runner-"):
            return Runner
        if name.startswith("ended-"):
            return Ending
        if key.startswith(self.layout.orders):
            return Order
        return Result if key.startswith(self.layout.results) else None


def _generation(order: Order) -> int:
    return order.generation
