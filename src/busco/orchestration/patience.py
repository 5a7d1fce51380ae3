"""How long S3 and ECS may fail before a task notices: one rule for the poller and for the calls of each follower."""

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

EVERY = 0.3  # seconds between two tries, and between two looks at a run's records
FAILURES = 150  # tries that may fail in a row: a minute where they fail at once, and longer where they time out
_LOGGED = 30  # of so many failures in a row, the first is logged
_LONGEST_PAUSE = 10.0  # seconds between two tries to start a runner
# Seconds after which a start that fails had worked until then: it waited in line, and no single question takes as long.
_WORKED = 300.0
_FOR_THE_LOG = 20.0  # seconds that a task whose result is known waits for text that only its log needs


async def patiently(what: str, call: Callable[[], Awaitable[Answer]]) -> Answer:
    """The answer to a call that is tried again while it fails; it must be safe to repeat.

    Args:
        what: names the call in the log.

    Raises:
        Conflict, CannotStart, BuscoError: at once: trying again does not change what these say.
        Exception: that of the last try, after `FAILURES` in a row.
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
                log.warning("%s failed and is tried again: %s: %s", what, type(error).__name__, error)
        await asyncio.sleep(EVERY)


async def start_patiently(what: str, call: Callable[[], Awaitable[Answer]]) -> Answer:
    """The runner that a call starts or finds. A call that fails is tried again for half an hour, which is as long as an
    order waits for ECS; it must be safe to repeat.

    Time counts here, not tries: a call may wait in line for hours, and what fails then has failed for the first time.

    Args:
        what: names the call in the log.

    Raises:
        CannotStart: the call raises it, or has failed for `PATIENCE` seconds: all who wait for this runner fail then,
            and not one after the other.
        Conflict, BuscoError: at once, as in `patiently`.
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
                text = f"{what} has failed for {PATIENCE / 60:.0f} minutes: {reason}"
                hint = "see that Airflow's database and AWS can be reached, then clear the task"
                raise CannotStart(f"{text}\n  → {hint}") from error
            log.warning("%s failed and is tried again in %.0f s: %s", what, pause, reason)
        await asyncio.sleep(pause)
        pause = min(pause * 2, _LONGEST_PAUSE)


async def to_the_end(what: str, work: Coroutine[Any, Any, None]) -> None:
    """Waits until `work` has ended, even if the caller is cancelled meanwhile. An error of it is logged, not raised.

    Airflow 2.10 cancels a trigger again every second until it has ended (`TriggerRunner.cancel_triggers`), and fails
    the task of a trigger that ends with any other exception (`TriggerRunner.cleanup_finished_triggers`).

    Args:
        what: names the work in the log.

    Raises:
        CancelledError: the caller was cancelled meanwhile.
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
    """Text that only a task's log needs. Where it can't be read, a line that says so takes its place: it never decides
    the state of the task.

    Args:
        what: names the text: `dbt's log of model.shop.orders`.
    """
    try:
        async with asyncio.timeout(_FOR_THE_LOG):
            return await patiently(what, read)
    except Exception as error:
        reason = f"no answer within {_FOR_THE_LOG:.0f} s" if isinstance(error, TimeoutError) else error
        return f"({what} could not be read: {reason})"
