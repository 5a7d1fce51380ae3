"""How an order gets one of the limited places for ECS tasks, keeps it while ECS starts its task, and when it is free.

A place is a row of a table that all triggerers share (slots.py), in one of these states:

    waiting    in line; the row goes when nobody has asked for it for a minute
    granted    may start one task; its owner keeps it with a heartbeat for as long as ECS takes to start one
    started    the ARN of its task is known; from here on only ECS says when it is free
    freed      there is no row

Every step is a conditional update, so that whoever comes second knows it. A granted place is freed by its owner if ECS
has certainly started nothing, or by anybody if its heartbeat is old and ECS has no task of the order. The owner can be
certain only if nobody else has asked for the same place: another triggerer may be starting the same order, or an
earlier attempt may have started a task and lost the answer. An owner that was too slow learns that after RunTask: it
stops the task that it started, and asks for a place again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from busco.orchestration.launch import CannotStart, Say
from busco.orchestration.stops import Stop

log = logging.getLogger(__name__)

STALE = 60.0  # seconds without a heartbeat after which a granted place is looked into: its triggerer may have died
FULL = 5.0  # seconds between two looks at who has the places, while somebody waits for one
_BEAT = 10.0  # seconds between two heartbeats of a granted place: several are missed before it is stale
_ASK = 1.0  # seconds between two questions for a place
_ANSWER = 120.0  # seconds that a discarded order waits for a RunTask that is under way
# Seconds for which ECS may not show a task that it has just started (API reference, RunTask: "eventual consistency").
UNSEEN = 20.0
PATIENCE = 1800.0  # seconds that an order waits for what may pass: capacity, throttling, the network
# What ListTasks can be asked for. It filters by the status that ECS wants a task to have: one that is being set up is
# in the first list, one that is being stopped and still runs in the second (API reference, ListTasks, desiredStatus).
LISTED = ("RUNNING", "STOPPED")


def is_over(task: Mapping[str, Any]) -> bool:
    """Whether a task, as DescribeTasks gives it, uses nothing any more: one that is being stopped still does."""
    return task.get("lastStatus") == "STOPPED"


@dataclass(frozen=True)
class Place:
    """Where an order stands: `ahead` is how many wait before it, 0 with a place or as the next one.

    `number` is that of the row: another one where the place was lost and asked for again. `arn` is the task that has
    the place, '' while none is known.
    """

    has_one: bool
    ahead: int
    taken: int
    number: int = 0
    arn: str = ""


@dataclass(frozen=True)
class Holder:
    """A place that is taken: `arn` is '' until its task is known, `seconds` the time since its owner was last heard."""

    token: str
    arn: str
    seconds: float


class Table(Protocol):
    """The places; every method is one transaction that may block."""

    limit: int

    def ask(self, token: str, label: str, start: str) -> Place: ...

    def keep(self, token: str) -> bool: ...

    def started(self, token: str, arn: str) -> bool: ...

    def leave(self, token: str) -> bool: ...

    def give_back(self, token: str, start: str) -> bool: ...

    def take_away(self, token: str, seconds: float) -> bool: ...

    def gone(self, arns: Collection[str]) -> list[str]: ...

    def holders(self) -> list[Holder]: ...


class Tasks(Protocol):
    """What is asked of ECS. Every method raises `Unreachable` where ECS does not answer, or not now."""

    async def of(self, token: str) -> list[str]:
        """The ARNs of the tasks that were started for an order, those that are not being stopped first."""

    async def living(self, token: str) -> list[str]:
        """Those of them that are not over."""

    async def over(self, holders: Collection[Holder]) -> set[str]:
        """The ARNs of the tasks that are over."""

    async def stop_task(self, arn: str, reason: str) -> None:
        """Stops a task; one that ECS does not know is no error."""


class Unreachable(Exception):
    """ECS did not do what it was asked; `stop` says why, and whether it may do it later.

    Args:
        sure: it has certainly started nothing.
    """

    def __init__(self, stop: Stop, sure: bool = True) -> None:
        super().__init__(str(stop))
        self.stop, self.sure = stop, sure


# RunTask, once, with this client token: gives the task's ARN. Raises Unreachable.
Run = Callable[[str], Awaitable[str]]


class Places:
    """The ways of a place, for owners and for all others.

    Args:
        stale: seconds without a heartbeat after which a granted place is looked into.
    """

    def __init__(self, table: Table, tasks: Tasks, stale: float = STALE) -> None:
        self.table, self.tasks, self.stale = table, tasks, stale
        self._looked_at = -FULL
        # the RunTasks that are under way, by the order's token; and the tasks that were started and got no place
        self._calling: dict[str, asyncio.Task[str]] = {}
        self._rejected: set[str] = set()

    # -- its owner ----------------------------------------------------------------------------------------------------

    async def start(self, token: str, label: str, run: Run, say: Say) -> str:
        """Starts one task for an order as soon as there is a place for it; gives its ARN.

        Whoever starts the same order again, in another triggerer or after a restart, gets the same task.

        Raises:
            CannotStart: there is no use in waiting, or it was waited for too long.
        """
        # names this attempt: whether an earlier one has started something is not known here
        start = uuid.uuid4().hex
        while True:
            place = await self._granted(token, label, start, say)
            if place.arn:
                return place.arn
            async with self._kept(token):
                arn = await self._task(token, start, f"{token}-{place.number}", run, say)
            if arn:
                return arn
            say("its place was taken away: its triggerer was not heard for a while; it asks for another one")

    async def discard(self, token: str, reason: str) -> None:
        """Ends the wait of an order that is not wanted any more, and stops what was started for it. It may be repeated.

        ListTasks may not show yet what was started a moment ago. Therefore this waits for a RunTask that is under way
        here, and for the list while the order has a place whose task is not known. The place is not freed here.

        Raises:
            Unreachable: ECS does not answer.
        """
        await _in_thread(self.table.leave, token)
        if calling := self._calling.get(token):
            await asyncio.wait([calling], timeout=_ANSWER)
        until = _now() + UNSEEN
        while True:
            holders: list[Holder] = await _in_thread(self.table.holders)
            places = [holder.arn for holder in holders if holder.token == token]
            found = {*await self.tasks.living(token), *places} - {""}
            for arn in sorted(found):
                await self.tasks.stop_task(arn, reason)
            if found or not places or _now() >= until:
                return
            await asyncio.sleep(_ASK)

    async def _granted(self, token: str, label: str, start: str, say: Say) -> Place:
        """Waits in line for a place."""
        said = ""
        try:
            while True:
                place: Place = await _in_thread(self.table.ask, token, label, start)
                if place.has_one:
                    return place
                line = f"waiting for a place: {place.taken} ECS tasks run, {place.ahead} wait before this one"
                if line != said:
                    say(f"{line} (BUSCO_MAX_ECS_TASKS={self.table.limit})")
                    said = line
                if _now() - self._looked_at >= FULL:
                    self._looked_at = _now()
                    await self.free()
                await asyncio.sleep(_ASK)
        except asyncio.CancelledError:
            # the question may have been answered meanwhile: nothing was started here, whatever the answer was
            await asyncio.shield(_in_thread(self.table.give_back, token, start))
            raise

    async def _task(self, token: str, start: str, client_token: str, run: Run, say: Say) -> str:
        """RunTask until there is a task; gives its ARN, '' where the place was lost meanwhile."""
        began, delay = _now(), 1.0
        # whether a task may have been started of which nothing is known: by this call, by an earlier one
        is_calling = is_unknown = False
        try:
            while await _in_thread(self.table.keep, token):
                try:
                    # after a restart, or a lost answer, there may be one already
                    known = [arn for arn in await self.tasks.of(token) if arn not in self._rejected]
                    is_calling = True
                    return await (self._taken(token, known[0]) if known else self._call(token, client_token, run))
                except Unreachable as error:
                    is_unknown = is_unknown or (is_calling and not error.sure)
                    is_calling = False
                    stop = error.stop
                if not stop.passing:
                    raise CannotStart(str(stop))
                if _now() - began > PATIENCE:
                    raise CannotStart(f"{stop}\n(tried for {PATIENCE / 60:.0f} minutes)")
                say(f"ECS starts no task now: {stop.text}; trying again in {delay:.0f} s")
                await asyncio.sleep(delay)
                delay = min(delay * 2, 60)
            return ""
        except BaseException:
            # else the place is looked into when its heartbeat is old
            if not is_calling and not is_unknown:
                await asyncio.shield(_in_thread(self.table.give_back, token, start))
            raise

    async def _call(self, token: str, client_token: str, run: Run) -> str:
        """RunTask, and what follows from its answer; as `_taken`.

        It goes on where whoever waits for it is cancelled: ECS may have heard it, and then the task needs its place,
        and `discard` its ARN. Whether the task is stopped is not decided here: another triggerer may want it.
        """

        async def call() -> str:
            try:
                # the caller keeps the place too, but only until it is cancelled
                async with self._kept(token):
                    return await self._taken(token, await run(client_token))
            finally:
                self._calling.pop(token, None)

        if token not in self._calling:
            self._calling[token] = asyncio.create_task(call())
        return await asyncio.shield(self._calling[token])

    async def _taken(self, token: str, arn: str) -> str:
        """Writes down which task has the place, and gives its ARN; '' where the place was lost: it is stopped then."""
        if await _in_thread(self.table.started, token, arn):
            return arn
        self._rejected.add(arn)
        await self._stop(arn)
        return ""

    @contextlib.asynccontextmanager
    async def _kept(self, token: str) -> AsyncIterator[None]:
        """Keeps a granted place, however long ECS takes for its answers."""

        async def beat() -> None:
            while True:
                await asyncio.sleep(_BEAT)
                try:
                    await _in_thread(self.table.keep, token)
                except Exception as error:
                    log.warning("the place of %s was not kept: %s", token, error)

        beating = asyncio.create_task(beat())
        try:
            yield
        finally:
            beating.cancel()

    async def _stop(self, arn: str) -> None:
        """Stops a task that has no place, as often as it takes."""
        delay = 1.0
        while True:
            try:
                await self.tasks.stop_task(arn, "its place was given to another order")
                return
            except Unreachable as error:
                log.warning("task %s has no place and could not be stopped yet: %s", arn, error)
                await asyncio.sleep(delay)
                delay = min(delay * 2, 60)

    # -- anybody ------------------------------------------------------------------------------------------------------

    async def free(self) -> list[str]:
        """Frees the places of tasks that are over, and those that were granted to an order whose owner has died; gives
        their tokens. Where ECS does not answer, nothing is freed."""
        freed: list[str] = []
        try:
            holders: list[Holder] = await _in_thread(self.table.holders)
            over = await self.tasks.over([holder for holder in holders if holder.arn])
            freed += await _in_thread(self.table.gone, sorted(over))
            for holder in holders:
                if holder.arn or holder.seconds <= self.stale:
                    continue
                if living := await self.tasks.living(holder.token):
                    await _in_thread(self.table.started, holder.token, living[0])
                elif await _in_thread(self.table.take_away, holder.token, self.stale):
                    freed.append(holder.token)
        except Unreachable as error:
            log.warning("ECS did not say which tasks run: %s", error)
        return freed


async def _in_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    return await asyncio.to_thread(function, *arguments)


def _now() -> float:
    return asyncio.get_running_loop().time()
