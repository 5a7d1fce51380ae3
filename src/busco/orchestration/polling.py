"""Reads the records of one epoch of a run, with one poller that is shared by all tasks that follow the run."""

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

_PER_TURN = 50  # followers to wake, or records to read, per turn of the event loop


@dataclass
class Launched:
    """A runner that was launched for an order.

    Attributes:
        resumed: whether the runner was started by another triggerer, or by this one before a restart. Such a runner may
            have ended long ago.
        ended_at: the number of the poll that found that the runner was gone; None until then.
        waiting: the followers that requested the runner before it was found to be gone.
        is_abandoned: whether the runner was stopped because nobody needed it; if so, its ending does not fail any task.
        why: why the runner ended; None until a follower has requested the reason.
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
    """The state of one epoch of a run, kept up to date while the run has followers.

    All collections except `followers` and `launched` exactly reflect the records as of the last poll, and change within
    one turn of the event loop.

    Attributes:
        endings: the endings of the runners that are known to be gone.
        orders: the newest order of each name.
        followers: for each try of a task, the number of the runner that the try follows; 0 if there is none yet.
        launched: the runners that were launched here.
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
    launched: dict[str, Launched] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.layout = RunLayout(EnvironmentLayout(self.settings.environment).epoch(self.pin.run, self.pin.epoch))
        self._seen: dict[str, str] = {}
        self._waiting: list[asyncio.Future[None]] = []
        self._poll_now = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._polls = 0
        self._silence = Silence(self.settings.runner_silence, lambda: asyncio.get_running_loop().time())
        # all silent runners; those that still have to be stopped; and those given up on because stopping had no effect
        self._silent: set[int] = set()
        self._to_stop: set[int] = set()
        self._given_up: set[int] = set()
        # versions that were built in this run and then replaced, since a later runner rebuilt their nodes
        self._replaced: set[str] = set()

    @property
    def polls(self) -> int:
        """The number of successful polls of the records."""
        return self._polls

    def gone(self, number: int) -> bool:
        """Whether a runner is known to be gone."""
        return number in self.endings

    async def enter(self, name: str) -> None:
        """Adds a follower, and waits until everything that was recorded before this call has been read.

        Raises:
            Exception: the records could not be read.
        """
        self.followers[name] = 0
        self._poll_now.set()
        await self.changed()

    def leave(self, name: str) -> None:
        self.followers.pop(name, None)

    async def changed(self) -> None:
        """Waits for a poll of the records that begins after this call.

        Starts the poller if it is not running: it may have given up while the caller was busy elsewhere.

        Raises:
            Exception: the records could not be read; the state is then out of date.
        """
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._poll())
        await waiting

    # -- the poller ---------------------------------------------------------------------------------------------------

    async def _poll(self) -> None:
        """Polls the records while the run has followers. Ends if the records can't be read and nobody is waiting."""
        now = asyncio.get_running_loop().time
        while self.followers:
            began, waited = now(), len(self._waiting)
            try:
                asked = await patiently(f"reading the records of run {self.pin.run}", self._poll_for_waiters)
            except Exception as error:
                # callers that arrived later have not waited as long, so they keep waiting
                failed, self._waiting = self._waiting[:waited], self._waiting[waited:]
                for one in failed:
                    if not one.done():
                        one.set_exception(error)
                if self._waiting:
                    continue
                return
            self._polls += 1
            await self._wake(asked)
            # a new follower starts the next poll early, but polling takes at most half of the time
            took = min(now() - began, EVERY)
            await asyncio.sleep(took)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EVERY - took):
                    await self._poll_now.wait()

    async def _poll_for_waiters(self) -> int:
        """Polls once. Returns the number of callers that were waiting when the poll began."""
        asked = len(self._waiting)
        self._poll_now.clear()
        await self._poll_once()
        return asked

    async def _wake(self, asked: int) -> None:
        """Wakes the first `asked` waiters, a few per turn of the event loop: a thousand at once would block it."""
        waiting, self._waiting = self._waiting[:asked], self._waiting[asked:]
        for number, one in enumerate(waiting, 1):
            if not one.done():
                one.set_result(None)
            if number % _PER_TURN == 0:
                await asyncio.sleep(0)

    async def _poll_once(self) -> None:
        """Updates the state from the records. On failure, raises and leaves the state that followers see unchanged."""
        # check liveness first, so that the listing has everything that a runner wrote before it was found to be gone
        await self._note_gone()
        # do not list the whole epoch: the records of followers and tables would double the listing
        etags = await self.objects.etags(self.layout.prefix, "/")
        for folder in (self.layout.orders, self.layout.results):
            etags |= await self.objects.etags(folder)
        await self._stop_silent(etags)
        changed = [key for key, etag in etags.items() if self._seen.get(key) != etag and self._kind(key)]
        records: dict[str, LakeRecord] = {}
        for begin in range(0, len(changed), _PER_TURN):
            some = changed[begin : begin + _PER_TURN]
            for key, stored in zip(some, await asyncio.gather(*map(self.objects.get, some)), strict=True):
                kind = self._kind(key)
                if stored is not None and kind is not None:
                    records[key] = kind.model_validate_json(stored[0])
        # everything from here on happens within one turn of the event loop, so that nobody sees an incomplete poll
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
        for launched in self.launched.values():
            if launched.ended_at is None and not launched.handle.alive():
                launched.ended_at = self._polls

    async def _note_gone(self) -> None:
        """Records which runners are gone. The next listing then reads these endings together with those that other
        triggerers recorded: an ending does not count until it is recorded, so that all triggerers use the same one."""
        living = [runner for number, runner in self.runners.items() if not self.gone(number)]
        gone = dict(await self.launcher.look(living, [launched.handle for launched in self.launched.values()]))
        for number in self._silent - self.endings.keys():
            if number in gone:
                gone[number] = gone[number].model_copy(update={"reason": self._silence_text(), "passing": True})
            elif number in self._given_up:
                gone[number] = Ending(number=number, reason=self._silence_text(), passing=True)
        for number, ending in gone.items():
            # a conflict means that another triggerer has already recorded the ending
            with contextlib.suppress(Conflict):
                await self.objects.put(self.layout.ending(number), ending.model_dump_json(), None)

    async def _stop_silent(self, etags: Mapping[str, str]) -> None:
        """Stops hung runners. A runner that then stays silent for as long again is given up on: its host is presumed
        lost, so its end will never be reported. If the runner resumes, the entries' tokens reject its writes (R4)."""
        living = [number for number in self.runners if not self.gone(number)]
        keys = {number: self.layout.heartbeat(number) for number in living}
        for number in self._silence.hear({number: etags[key] for number, key in keys.items() if key in etags}):
            log.warning("run=%s runner=%s has stopped sending heartbeats and will be stopped", self.pin.run, number)
            if number in self._silent:
                self._given_up.add(number)
            self._silent.add(number)
            self._to_stop.add(number)
        self._to_stop &= set(living)
        for number in sorted(self._to_stop):
            try:
                await self.launcher.stop(self.runners[number], self._silence_text())
            except Exception as error:
                # the next poll tries again to stop it; other runners' results must not wait for this
                log.warning("run=%s runner=%s could not be stopped: %s", self.pin.run, number, error)
            else:
                self._to_stop.discard(number)

    def _silence_text(self) -> str:
        return f"it sent no heartbeats for {self._silence.limit:.0f} s and was stopped"

    def _replaced_versions(self) -> set[str]:
        newest: dict[str, tuple[int, str]] = {}
        everything: set[str] = set()
        for (node, number), result in self.results.items():
            if result.made and not result.fenced:
                everything.add(result.made)
                newest[node] = max(newest.get(node, (0, "")), (number, result.made))
        return everything - {version for _, version in newest.values()}

    def _kind(self, key: str) -> type[LakeRecord] | None:
        """Returns the type of a record, or None for records that followers do not need."""
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
