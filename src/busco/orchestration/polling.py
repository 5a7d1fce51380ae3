"""The records of one epoch of a run, and the one poller that reads them for all of the tasks that follow it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from busco.lake.layout import EnvironmentLayout, RunLayout
from busco.lake.records import Ending, LakeRecord, Order, Pin, Result, Runner
from busco.orchestration.async_aws import AsyncObjects, Conflict
from busco.orchestration.launch import Launcher, Starting
from busco.orchestration.patience import EVERY, patiently
from busco.orchestration.silence import Silence
from busco.settings import Settings

log = logging.getLogger(__name__)

_A_TURN = 50  # followers that are woken, or records that are read, in one turn of the loop


@dataclass
class Slot:
    """A runner that was started for an order.

    Attributes:
        resumed: it was started by another triggerer, or by this one before a restart, and may have ended long ago.
        ended_at: the number of the look that first saw it gone.
        waiting: the followers that asked for it before it was seen gone.
        is_abandoned: it was stopped because nobody needed it, so its end is nobody's failure.
        why: why it has ended, once somebody has asked.
    """

    order: Order
    handle: Starting
    resumed: bool = False
    ended_at: int | None = None
    waiting: set[str] = field(default_factory=set)
    is_abandoned: bool = False
    why: str | None = None


@dataclass
class Polled:
    """What is known of one epoch of a run, kept up to date while anybody follows it.

    `orders` has the newest one under each name; `endings` the runners that were seen gone; `followers` which runner
    each try of a task follows, 0 where it has none yet; `slots` what was started here. All but the last two are exactly
    what the records said at the last look, and change in one turn of the loop.
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
    slots: dict[str, Slot] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.layout = RunLayout(EnvironmentLayout(self.settings.environment).epoch(self.pin.run, self.pin.epoch))
        self._seen: dict[str, str] = {}
        self._waiting: list[asyncio.Future[None]] = []
        self._wanted_now = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._looks = 0
        self._silence = Silence(self.settings.runner_silence, lambda: asyncio.get_running_loop().time())
        # runners that gave no sign of life; those of them still to be stopped; and those that outlived being stopped
        self._silent: set[int] = set()
        self._to_stop: set[int] = set()
        self._given_up: set[int] = set()
        # versions that were made in this run and made again by a later runner
        self._replaced: set[str] = set()

    @property
    def looks(self) -> int:
        """How many looks at the records succeeded."""
        return self._looks

    def gone(self, number: int) -> bool:
        """Whether a runner was seen gone."""
        return number in self.endings

    async def enter(self, name: str) -> None:
        """Adds a follower, and waits until it knows everything that was recorded before this call.

        Raises:
            Exception: the records could not be read.
        """
        self.followers[name] = 0
        self._wanted_now.set()
        await self.changed()

    def leave(self, name: str) -> None:
        self.followers.pop(name, None)

    async def changed(self) -> None:
        """Waits for a look at the records that begins after this call, and starts the poller if it is not running: it
        may have given up while the caller was busy elsewhere.

        Raises:
            Exception: the records could not be read; what was known before is then out of date.
        """
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._poll())
        await waiting

    # -- the poller ---------------------------------------------------------------------------------------------------

    async def _poll(self) -> None:
        """Looks at the records while anybody follows the run, and ends when they can't be read and nobody waits."""
        now = asyncio.get_running_loop().time
        while self.followers:
            began, waited = now(), len(self._waiting)
            try:
                asked = await patiently(f"reading the records of run {self.pin.run}", self._look_for_all)
            except Exception as error:
                # whoever came in between has not waited for as long, and waits on
                failed, self._waiting = self._waiting[:waited], self._waiting[waited:]
                for one in failed:
                    if not one.done():
                        one.set_exception(error)
                if self._waiting:
                    continue
                return
            self._looks += 1
            await self._wake(asked)
            # a task that has just begun need not wait for the next look, but looks take no more than half of the time
            took = min(now() - began, EVERY)
            await asyncio.sleep(took)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EVERY - took):
                    await self._wanted_now.wait()

    async def _look_for_all(self) -> int:
        """One look; the number of those who had asked for it when it began."""
        asked = len(self._waiting)
        self._wanted_now.clear()
        await self._look()
        return asked

    async def _wake(self, asked: int) -> None:
        """Wakes the first `asked` of those who wait, some in each turn of the loop: a thousand in one would hold it."""
        waiting, self._waiting = self._waiting[:asked], self._waiting[asked:]
        for number, one in enumerate(waiting, 1):
            if not one.done():
                one.set_result(None)
            if number % _A_TURN == 0:
                await asyncio.sleep(0)

    async def _look(self) -> None:
        """Brings everything up to date, or raises and changes nothing of what followers see."""
        # liveness first: what a runner wrote before it was seen gone is then in the listing that follows
        await self._note_gone()
        # not the whole epoch: followers' and tables' records are as many again
        etags = await self.objects.etags(self.layout.prefix, "/")
        for folder in (self.layout.orders, self.layout.results):
            etags |= await self.objects.etags(folder)
        await self._stop_silent(etags)
        wanted = [key for key, etag in etags.items() if self._seen.get(key) != etag and self._kind(key)]
        records: dict[str, LakeRecord] = {}
        for begin in range(0, len(wanted), _A_TURN):
            some = wanted[begin : begin + _A_TURN]
            for key, stored in zip(some, await asyncio.gather(*map(self.objects.get, some)), strict=True):
                kind = self._kind(key)
                if stored is not None and kind is not None:
                    records[key] = kind.model_validate_json(stored[0])
        # from here on in one turn: nobody sees one half of a look
        for key, record in records.items():
            if isinstance(record, Result):
                self.results[(record.node, record.runner)] = record
            elif isinstance(record, Runner):
                self.runners[record.number] = record
            elif isinstance(record, Ending):
                self.endings[record.number] = record
            elif isinstance(record, Order):
                known = self.orders.get(record.name)
                self.orders[record.name] = record if known is None else max(known, record, key=_generation)
            self._seen[key] = etags[key]
        self._replaced = self._replaced_versions()
        for slot in self.slots.values():
            if slot.ended_at is None and not slot.handle.alive():
                slot.ended_at = self._looks

    async def _note_gone(self) -> None:
        """Writes down which runners are gone. The look that follows reads it, as it reads what other triggerers wrote:
        an ending counts once it is written, and everybody sees the same one."""
        living = [runner for number, runner in self.runners.items() if not self.gone(number)]
        gone = dict(await self.launcher.look(living, [slot.handle for slot in self.slots.values()]))
        for number in self._silent - self.endings.keys():
            if number in gone:
                gone[number] = gone[number].model_copy(update={"reason": self._silence_text(), "passing": True})
            elif number in self._given_up:
                gone[number] = Ending(number=number, reason=self._silence_text(), passing=True)
        for number, ending in gone.items():
            # a conflict: another triggerer has written it already
            with contextlib.suppress(Conflict):
                await self.objects.put(self.layout.ending(number), ending.model_dump_json(), None)

    async def _stop_silent(self, etags: Mapping[str, str]) -> None:
        """Stops runners that hang. One that is silent for as long again is given up: nobody says that it is gone, since
        its host is lost. Should it wake up, the entries' tokens keep it out (R4)."""
        living = [number for number in self.runners if not self.gone(number)]
        keys = {number: self.layout.heartbeat(number) for number in living}
        for number in self._silence.hear({number: etags[key] for number, key in keys.items() if key in etags}):
            log.warning("run=%s runner=%s is stopped: no sign of life", self.pin.run, number)
            if number in self._silent:
                self._given_up.add(number)
            self._silent.add(number)
            self._to_stop.add(number)
        self._to_stop &= set(living)
        for number in sorted(self._to_stop):
            try:
                await self.launcher.stop(self.runners[number], self._silence_text())
            except Exception as error:
                # the next look tries again; the results of other runners do not wait for it
                log.warning("run=%s runner=%s could not be stopped: %s", self.pin.run, number, error)
            else:
                self._to_stop.discard(number)

    def _silence_text(self) -> str:
        return f"it gave no sign of life for {self._silence.limit:.0f} s and was stopped"

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
