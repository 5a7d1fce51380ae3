"""Manages the limited slots for ECS tasks: acquires one for an order, keeps it while the task starts, and frees it.

A slot is a row of a table that all triggerers share (slots.py), in one of these states:

    waiting    in the queue; the row is deleted if its order has not requested the slot for a minute
    granted    the order may start one task; the owner (the process that starts it) sends heartbeats until it is started
    started    the ARN of the task is known; from here on, only ECS determines when the slot is free
    freed      there is no row

Every step is a conditional update, so the slower of two processes notices that its update had no effect. A granted slot
is freed by its owner if ECS has definitely started nothing, or by any process if the slot's heartbeat is stale and ECS
has no task for the order. The owner can be certain that nothing was started only if nobody else has requested the same
slot: another triggerer may be starting the same order, or an earlier attempt may have started a task and lost the
response. An owner that was too slow and lost its slot notices this after RunTask; it then stops the task that it
started and requests a slot again.
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

STALE = 60.0  # seconds without a heartbeat after which a granted slot is checked: its owner may have died
FULL = 5.0  # seconds between two checks for slots that can be freed, while an order waits for a slot
ABANDONED = "interval '1 minute'"  # in SQL: a waiting row whose slot has not been requested for this long is abandoned
_BEAT = 10.0  # seconds between two heartbeats of a granted slot; several must be missed before the slot is stale
_ASK = 1.0  # seconds between two requests for a slot
_ANSWER = 120.0  # seconds that `discard` waits for a RunTask call in progress
# Seconds for which ECS may not list a task that it has just started (API reference, RunTask: "eventual consistency").
UNSEEN = 20.0
PATIENCE = 1800.0  # seconds that an order keeps retrying after transient errors: capacity, throttling, the network
# ListTasks filters by desired status: RUNNING includes tasks that are being set up, and STOPPED includes tasks that are
# being stopped but are still running (API reference, ListTasks, desiredStatus).
LISTED = ("RUNNING", "STOPPED")


def is_over(task: Mapping[str, Any]) -> bool:
    """Whether a task from DescribeTasks no longer uses resources; a task that is being stopped still does."""
    return task.get("lastStatus") == "STOPPED"


@dataclass(frozen=True)
class Place:
    """An order's slot, or its position in the queue: `ahead` is the number of orders ahead of it, 0 if the order is
    next or has a slot.

    `taken` is the number of slots in use. `number` is the row's id, which changes if the slot is lost and requested
    again. `arn` is the ARN of the task in the slot, '' until it is known.
    """

    has_one: bool
    ahead: int
    taken: int
    number: int = 0
    arn: str = ""


@dataclass(frozen=True)
class Holder:
    """A slot in use: `arn` is '' until the slot's task is known, and `seconds` is the time since the last heartbeat."""

    token: str
    arn: str
    seconds: float


class Table(Protocol):
    """The table of slots. Every method is one transaction and may block."""

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
    """The ECS operations that slots need. Every method raises `Unreachable` if ECS refuses or does not respond."""

    async def of(self, token: str) -> list[str]:
        """Returns the ARNs of an order's tasks; tasks that are not being stopped come first."""

    async def living(self, token: str) -> list[str]:
        """Returns the ARNs of an order's tasks that have not stopped."""

    async def over(self, holders: Collection[Holder]) -> set[str]:
        """Returns the ARNs of the holders' tasks that have stopped."""

    async def stop_task(self, arn: str, reason: str) -> None:
        """Stops a task; does nothing if ECS no longer has it."""


class Unreachable(Exception):
    """An ECS request failed; `stop` states why it failed and whether a retry may succeed.

    Args:
        sure: whether ECS has definitely started nothing.
    """

    def __init__(self, stop: Stop, sure: bool = True) -> None:
        super().__init__(str(stop))
        self.stop, self.sure = stop, sure


# Calls RunTask once with the given client token and returns the task's ARN. Raises `Unreachable` on failure.
Run = Callable[[str], Awaitable[str]]


class Places:
    """Acquires, keeps and frees slots.

    Args:
        stale: seconds without a heartbeat after which a granted slot is checked.
    """

    def __init__(self, table: Table, tasks: Tasks, stale: float = STALE) -> None:
        self.table, self.tasks, self.stale = table, tasks, stale
        self._looked_at = -FULL
        # the RunTask calls in progress, by the order's token; and the ARNs of tasks that were started but got no slot
        self._calling: dict[str, asyncio.Task[str]] = {}
        self._rejected: set[str] = set()

    # -- the owner ----------------------------------------------------------------------------------------------------

    async def start(self, token: str, label: str, run: Run, say: Say) -> str:
        """Starts one task for an order as soon as a slot is free, and returns the task's ARN.

        Starting the same order again, in another triggerer or after a restart, returns the same task.

        Raises:
            CannotStart: ECS returned a permanent error, or transient errors have lasted for too long.
        """
        # identifies this attempt, which cannot know whether an earlier attempt has started a task
        start = uuid.uuid4().hex
        while True:
            place = await self._granted(token, label, start, say)
            if place.arn:
                return place.arn
            async with self._kept(token):
                arn = await self._task(token, start, f"{token}-{place.number}", run, say)
            if arn:
                return arn
            say("the slot was taken away because its triggerer missed heartbeats; requesting another slot")

    async def discard(self, token: str, reason: str) -> None:
        """Removes an order that is no longer needed from the queue, and stops the order's tasks. Safe to repeat.

        ListTasks may not list a task that was started a moment ago. Therefore, this method waits for a RunTask call
        that is in progress in this process, and polls the list while the order has a slot whose task is unknown. The
        method does not free the slot.

        Raises:
            Unreachable: ECS does not respond.
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
        """Waits in the queue until the order has a slot, and returns the slot."""
        last = ""
        try:
            while True:
                place: Place = await _in_thread(self.table.ask, token, label, start)
                if place.has_one:
                    return place
                line = f"waiting for a slot: {place.taken} ECS tasks running, {place.ahead} orders ahead of this one"
                if line != last:
                    say(f"{line} (BUSCO_MAX_ECS_TASKS={self.table.limit})")
                    last = line
                if _now() - self._looked_at >= FULL:
                    self._looked_at = _now()
                    await self.free()
                await asyncio.sleep(_ASK)
        except asyncio.CancelledError:
            # the slot may have been granted in the meantime; this attempt has not started anything in it
            await asyncio.shield(_in_thread(self.table.give_back, token, start))
            raise

    async def _task(self, token: str, start: str, client_token: str, run: Run, say: Say) -> str:
        """Retries RunTask until there is a task, and returns its ARN; '' if the slot was lost in the meantime."""
        began, delay = _now(), 1.0
        # whether the current RunTask call, or an earlier one, may have started a task whose ARN is unknown
        is_calling = is_unknown = False
        try:
            while await _in_thread(self.table.keep, token):
                try:
                    # after a restart or a lost response, the task may already exist
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
                say(f"ECS cannot start the task now: {stop.text}; retrying in {delay:.0f} s")
                await asyncio.sleep(delay)
                delay = min(delay * 2, 60)
            return ""
        except BaseException:
            # if a task may have been started, keep the slot: some process will check it once its heartbeat is stale
            if not is_calling and not is_unknown:
                await asyncio.shield(_in_thread(self.table.give_back, token, start))
            raise

    async def _call(self, token: str, client_token: str, run: Run) -> str:
        """Calls RunTask, and records the started task in the slot with `_taken`.

        The call continues even if its caller is cancelled: ECS may have received the request, in which case the task
        needs its slot, and `discard` needs the ARN. Whether to stop the task is not decided here, since another
        triggerer may need that task.
        """

        async def call() -> str:
            try:
                # the caller sends heartbeats too, but only until it is cancelled
                async with self._kept(token):
                    return await self._taken(token, await run(client_token))
            finally:
                self._calling.pop(token, None)

        if token not in self._calling:
            self._calling[token] = asyncio.create_task(call())
        return await asyncio.shield(self._calling[token])

    async def _taken(self, token: str, arn: str) -> str:
        """Records the task in the slot and returns its ARN; if the slot was lost, stops the task and returns ''."""
        if await _in_thread(self.table.started, token, arn):
            return arn
        self._rejected.add(arn)
        await self._stop(arn)
        return ""

    @contextlib.asynccontextmanager
    async def _kept(self, token: str) -> AsyncIterator[None]:
        """Sends heartbeats for a granted slot, however long ECS takes to respond."""

        async def beat() -> None:
            while True:
                await asyncio.sleep(_BEAT)
                try:
                    await _in_thread(self.table.keep, token)
                except Exception as error:
                    log.warning("heartbeat failed for the slot of order=%s: %s", token, error)

        beating = asyncio.create_task(beat())
        try:
            yield
        finally:
            beating.cancel()

    async def _stop(self, arn: str) -> None:
        """Stops a task that has no slot, retrying until it succeeds."""
        delay = 1.0
        while True:
            try:
                await self.tasks.stop_task(arn, "its slot was given to another order")
                return
            except Unreachable as error:
                log.warning("task=%s has no slot and could not be stopped, retrying: %s", arn, error)
                await asyncio.sleep(delay)
                delay = min(delay * 2, 60)

    # -- any process --------------------------------------------------------------------------------------------------

    async def free(self) -> list[str]:
        """Frees the slots of stopped tasks, and granted slots whose owner has died. Returns the tokens of these slots.

        A slot is kept if ECS can't be queried about it.
        """
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
            log.warning("could not list the running ECS tasks: %s", error)
        return freed


async def _in_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    return await asyncio.to_thread(function, *arguments)


def _now() -> float:
    return asyncio.get_running_loop().time()
