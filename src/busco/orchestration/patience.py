"""Retries calls to S3 and ECS, with the same policy for the poller and for every follower."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from busco.errors import BuscoError
from busco.orchestration.async_aws import Conflict
from busco.orchestration.launch import CannotStart
from busco.orchestration.places import PATIENCE

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")

EVERY = 0.3  # seconds between retries, and between two polls of a run's records
FAILURES = 150  # consecutive failures allowed: about a minute if calls fail at once, longer if they time out
_LOGGED = 30  # one in this many consecutive failures is logged
_LONGEST_PAUSE = 10.0  # seconds between two attempts to start a runner
# Seconds. A call to start a runner that takes longer than this to fail must have waited in the queue, since no request
# takes this long; its half hour of retries then begins again.
_WORKED = 300.0
_FOR_THE_LOG = 20.0  # seconds that a task with a known result waits for text that is needed only for its log


async def patiently(what: str, call: Callable[[], Awaitable[Answer]]) -> Answer:
    """Returns the result of a call, which is retried while it fails and must be safe to repeat.

    Args:
        what: the call's name in the log.

    Raises:
        Conflict, CannotStart, BuscoError: immediately, since a retry would not help.
        Exception: the last error, after `FAILURES` consecutive failures.
    """
    failures = 0
    while True:
        try:
            return await call()
        except (Conflict, CannotStart, BuscoError):
            raise
        except Exception as error:
            failures += 1
            if failures >= FAILURES:
                raise
            if failures % _LOGGED == 1:
                log.warning("%s failed, retrying: %s: %s", what, type(error).__name__, error)
        await asyncio.sleep(EVERY)


async def start_patiently(what: str, call: Callable[[], Awaitable[Answer]]) -> Answer:
    """Returns the runner that a call starts or finds.

    The call must be safe to repeat. It is retried for half an hour, as are an order's calls to ECS.

    The limit is on time, not on attempts: a call can wait in the queue for hours before its first failure.

    Args:
        what: the call's name in the log.

    Raises:
        CannotStart: the call raised it, or has been failing for `PATIENCE` seconds. All followers that wait for this
            runner then fail together, not one after another.
        Conflict, BuscoError: immediately, as in `patiently`.
    """
    now = asyncio.get_running_loop().time
    since, pause = now(), EVERY
    while True:
        began = now()
        try:
            return await call()
        except (Conflict, CannotStart, BuscoError):
            raise
        except Exception as error:
            if now() - began > _WORKED:
                since, pause = now(), EVERY
            reason = f"{type(error).__name__}: {error}"
            if now() - since > PATIENCE:
                text = f"{what} has been failing for {PATIENCE / 60:.0f} minutes: {reason}"
                hint = "make sure that Airflow's database and AWS are reachable, then clear the task"
                raise CannotStart(f"{text}\n  → {hint}") from error
            log.warning("%s failed, retrying in %.0f s: %s", what, pause, reason)
        await asyncio.sleep(pause)
        pause = min(pause * 2, _LONGEST_PAUSE)


async def to_the_end(what: str, work: Coroutine[Any, Any, None]) -> None:
    """Waits until `work` has finished, even if the caller is cancelled. Errors in `work` are logged, not raised.

    Airflow 2.10 cancels a trigger again every second until the trigger ends (`TriggerRunner.cancel_triggers`), and
    fails the task of a trigger that ends with an exception other than `CancelledError`
    (`TriggerRunner.cleanup_finished_triggers`).

    Args:
        what: the name of the work in the log.

    Raises:
        CancelledError: the caller was cancelled while it waited.
    """
    task = asyncio.create_task(work)
    is_cancelled = False
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError:
            is_cancelled = True
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("%s failed", what, exc_info=error)
    if is_cancelled:
        raise asyncio.CancelledError


async def text_for_log(what: str, read: Callable[[], Awaitable[str]]) -> str:
    """Reads text that only a task's log needs. On failure, returns a line that states the reason instead of raising,
    since this text must never affect the task's state.

    Args:
        what: the name of the text, for example `dbt's log of model.shop.orders`.
    """
    try:
        async with asyncio.timeout(_FOR_THE_LOG):
            return await patiently(f"reading {what}", read)
    except Exception as error:
        reason = f"no response within {_FOR_THE_LOG:.0f} s" if isinstance(error, TimeoutError) else error
        return f"({what} could not be read: {reason})"
