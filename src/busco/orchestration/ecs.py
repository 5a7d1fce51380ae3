"""Starts, watches, stops and limits runners that are ECS tasks (BUSCO_EXECUTION=ecs_shared or ecs)."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError

from busco.lake.records import Ending, Order, Pin, Runner
from busco.orchestration.async_aws import async_client
from busco.orchestration.ecs_task import overrides, placement, started_by, task_definition
from busco.orchestration.launch import Say, Starting, command
from busco.orchestration.places import LISTED, STALE, UNSEEN, Holder, Places, Unreachable, is_over
from busco.orchestration.slots import Slots
from busco.orchestration.stops import Stop, stop_reason
from busco.settings import Settings

log = logging.getLogger(__name__)

_EVERY = 1.5  # seconds between two checks of the same ECS task
_MOST = 100  # the most tasks that one DescribeTasks call accepts (API reference, DescribeTasks)
# If DescribeTasks has returned a task before, and then does not return it for this many seconds, the task has expired,
# or ECS was restarted. A task that ECS has just started can be missing for longer (`UNSEEN`).
_VANISHED = 4.0


@dataclass
class Seen:
    """What is known about an ECS task; times are monotonic clock readings.

    Attributes:
        ever: whether DescribeTasks has ever returned the task.
    """

    looked_at: float = 0.0
    missing_since: float | None = None
    ever: bool = False
    ending: Ending | None = None


@dataclass
class EcsTask:
    """A runner that is an ECS task."""

    launcher: EcsLauncher
    arn: str

    def alive(self) -> bool:
        return self.launcher.seen(self.arn).ending is None

    def passing(self) -> bool:
        ending = self.launcher.seen(self.arn).ending
        return ending is not None and ending.passing

    async def why(self) -> str:
        ending = self.launcher.seen(self.arn).ending
        output = await self.launcher.output(self.arn)
        return "\n".join(part for part in (ending.reason if ending else "", output) if part)

    async def stop(self, reason: str) -> None:
        await self.launcher.stop_task(self.arn, reason)


@dataclass
class EcsLauncher:
    """Starts one ECS task for each order, in a limited number of slots.

    The task's `startedBy` contains the order's token. If another triggerer, or this one after a restart, starts the
    order again, it gets the same task. However, only the token in a table's entry (R4) protects the table from two
    runners in all cases.

    Args:
        stale: seconds without a heartbeat after which a slot without a known task is checked.
    """

    settings: Settings
    slots: Slots
    stale: float = STALE
    _tasks: dict[str, Seen] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.places = Places(self.slots, self, self.stale)

    # -- starting -----------------------------------------------------------------------------------------------------

    async def start(self, pin: Pin, order: Order, say: Say) -> EcsTask:
        return await self.start_command(command(pin, order), order.token, f"{pin.run} {order.name}", say, order.size)

    async def start_command(self, words: Sequence[str], token: str, label: str, say: Say, size: str = "") -> EcsTask:
        """Waits for a slot, then starts `busco <words>` in the dbt image, at most once per token.

        Args:
            token: at most 32 characters, because it is the prefix of an ECS client token.
            label: a description of the slot, for lists of slots.

        Raises:
            CannotStart: the task can't be started, and waiting won't help.
        """

        async def run(client_token: str) -> str:
            return await self._run(self.request(words, token, size, client_token))

        arn = await self.places.start(token, label, run, say)
        self._tasks.setdefault(arn, Seen(looked_at=time.monotonic()))
        say(f"started ECS task {arn} (size {size or self.settings.ecs_size})")
        return EcsTask(self, arn)

    async def end_of(self, task: EcsTask) -> Ending:
        """Waits until a task has ended, and returns its ending; if the wait is interrupted, stops the task."""
        try:
            while (ending := self.seen(task.arn).ending) is None:
                await asyncio.sleep(_EVERY)
                await self._see([task.arn])
            return ending
        except BaseException:
            await task.stop("the process that was waiting for this task was stopped")
            raise

    async def resume(self, pin: Pin, order: Order, say: Say) -> EcsTask:
        return await self.start(pin, order, say)

    async def discard(self, order: Order, reason: str) -> None:
        await self.places.discard(order.token, reason)

    async def _run(self, request: Mapping[str, Any]) -> str:
        """Calls RunTask once, and returns the task's ARN.

        Raises:
            Unreachable: ECS did not start a task, or did not respond.
        """
        ecs = await async_client("ecs", self.settings)
        with _raises_unreachable():
            answer = await ecs.run_task(**request)
        if tasks := answer.get("tasks"):
            return str(tasks[0]["taskArn"])
        failure = (answer.get("failures") or [{}])[0]
        stop = stop_reason("", str(failure.get("reason") or ""), str(failure.get("detail") or ""))
        raise Unreachable(stop, _single_attempt(answer))

    def request(self, words: Sequence[str], token: str, size: str = "", client_token: str = "") -> dict[str, Any]:
        """Returns the arguments for RunTask."""
        settings = self.settings
        request: dict[str, Any] = {
            "cluster": settings.ecs_cluster,
            "taskDefinition": task_definition(settings, size),
            "count": 1,
            "clientToken": client_token or token,
            "startedBy": started_by(token),
            "overrides": overrides(settings, words),
        }
        return request | placement(settings)

    # -- queries for the slots (places.Tasks) -------------------------------------------------------------------------

    async def of(self, token: str) -> list[str]:
        ecs, cluster = await async_client("ecs", self.settings), self.settings.ecs_cluster
        found: list[str] = []
        with _raises_unreachable():
            for status in LISTED:
                answer = await ecs.list_tasks(cluster=cluster, startedBy=started_by(token), desiredStatus=status)
                found += map(str, answer.get("taskArns") or [])
        return found

    async def living(self, token: str) -> list[str]:
        found = await self.of(token)
        if not found:
            return []
        ecs = await async_client("ecs", self.settings)
        with _raises_unreachable():
            answer = await ecs.describe_tasks(cluster=self.settings.ecs_cluster, tasks=found)
        # a task that is listed but can't be described has only just been started
        over = {str(task["taskArn"]) for task in answer.get("tasks") or [] if is_over(task)}
        return [arn for arn in found if arn not in over]

    async def over(self, holders: Collection[Holder]) -> set[str]:
        with _raises_unreachable():
            await self._describe([holder.arn for holder in holders])
        found = set()
        for holder in holders:
            seen = self.seen(holder.arn)
            # a task that was started long ago and is missing from ECS has expired: it can't be too new to be visible
            if seen.ending or (seen.missing_since is not None and holder.seconds > self.places.stale):
                found.add(holder.arn)
        return found

    # -- watching -----------------------------------------------------------------------------------------------------

    def seen(self, arn: str) -> Seen:
        return self._tasks.setdefault(arn, Seen())

    async def look(self, runners: Sequence[Runner], handles: Sequence[Starting]) -> Mapping[int, Ending]:
        arns = {runner.arn for runner in runners if runner.arn}
        arns |= {handle.arn for handle in handles if isinstance(handle, EcsTask) and handle.alive()}
        await self._see(sorted(arns))
        gone: dict[int, Ending] = {}
        for runner in runners:
            ending = (
                self.seen(runner.arn).ending if runner.arn else Ending(number=0, reason="the runner is not an ECS task")
            )
            if ending is not None:
                gone[runner.number] = ending.model_copy(update={"number": runner.number})
        return gone

    async def _see(self, arns: Sequence[str]) -> None:
        """Refreshes what is known about tasks, and frees the slots of those that have stopped."""
        await asyncio.to_thread(self.slots.gone, await self._describe(arns))

    async def _describe(self, arns: Sequence[str]) -> list[str]:
        """Describes the tasks that were not described recently, and returns the ARNs of those found to have stopped."""
        now = time.monotonic()
        due = [arn for arn in arns if self.seen(arn).ending is None and now - self.seen(arn).looked_at >= _EVERY]
        if not due:
            return []
        ecs = await async_client("ecs", self.settings)
        ended: list[str] = []
        for start in range(0, len(due), _MOST):
            answer = await ecs.describe_tasks(cluster=self.settings.ecs_cluster, tasks=due[start : start + _MOST])
            for task in answer.get("tasks") or []:
                seen = self.seen(str(task["taskArn"]))
                seen.looked_at, seen.ever, seen.missing_since = now, True, None
                if is_over(task):
                    seen.ending = ending_of(task, self.settings.ecs_container)
                    ended.append(str(task["taskArn"]))
            for failure in answer.get("failures") or []:
                if failure.get("reason") != "MISSING":
                    continue
                seen = self.seen(str(failure["arn"]))
                seen.looked_at, seen.missing_since = now, seen.missing_since or now
                if now - seen.missing_since >= (_VANISHED if seen.ever else UNSEEN):
                    reason = "ECS no longer has the runner's task: it has expired, or ECS was restarted"
                    seen.ending = Ending(number=0, reason=reason, passing=True)
                    ended.append(str(failure["arn"]))
        return ended

    # -- stopping, and output -----------------------------------------------------------------------------------------

    async def stop(self, runner: Runner, reason: str) -> None:
        if runner.arn:
            await self.stop_task(runner.arn, reason)

    async def stop_task(self, arn: str, reason: str) -> None:
        """Calls StopTask; if ECS no longer has the task, the task has already ended.

        Raises:
            Unreachable: ECS refuses, or does not respond.
        """
        ecs = await async_client("ecs", self.settings)
        with _raises_unreachable():
            try:
                await ecs.stop_task(cluster=self.settings.ecs_cluster, task=arn, reason=reason[:255])
            except ClientError as error:
                if "not found" not in str(error):
                    raise

    async def tail(self, runner: Runner) -> str:
        return await self.output(runner.arn) if runner.arn else ""

    async def output(self, arn: str, lines: int = 20) -> str:
        """Returns the last lines of a task's output in CloudWatch, or '' if they can't be read: no result depends on
        them."""
        try:
            logs = await async_client("logs", self.settings)
            answer = await logs.get_log_events(
                logGroupName=self.settings.ecs_log_group,
                logStreamName=log_stream(self.settings, arn),
                limit=lines,
                startFromHead=False,
            )
        except (ClientError, BotoCoreError) as error:
            log.info("could not read the output of %s: %s", arn, error)
            return ""
        return "\n".join(str(event["message"]) for event in answer.get("events") or [])


@contextmanager
def _raises_unreachable() -> Iterator[None]:
    """Converts the exceptions of an ECS call to `Unreachable`."""
    try:
        yield
    except ClientError as error:
        details = error.response["Error"]
        stop = stop_reason("", f"{details.get('Code', '')}: {details.get('Message', '')}")
        is_server = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500) >= 500
        raise Unreachable(stop, not is_server and _single_attempt(error.response)) from error
    except ParamValidationError as error:
        stop = Stop("api", f"the request is invalid: {error}", "check the BUSCO_ECS_* settings")
        raise Unreachable(stop) from error
    except BotoCoreError as error:
        # This includes failed connections, and missing credentials, because the provider of the credentials may be
        # unavailable. A task may have been started nevertheless: the client retries, and the error only describes
        # the last attempt.
        hint = "check that the ECS endpoint is reachable, and that Airflow's machine has credentials"
        raise Unreachable(Stop("network", f"no response from ECS: {error}", hint, True), False) from error


def _single_attempt(answer: Mapping[str, Any]) -> bool:
    """Whether the client made only one attempt; if not, an earlier one, whose response was lost, may have succeeded."""
    return not answer.get("ResponseMetadata", {}).get("RetryAttempts", 0)


def log_stream(settings: Settings, arn: str) -> str:
    """Returns the CloudWatch log stream of a task's container (ECS developer guide, awslogs-stream-prefix)."""
    return f"{settings.ecs_log_prefix}/{settings.ecs_container}/{arn.rsplit('/', 1)[-1]}"


def ending_of(task: Mapping[str, Any], container: str) -> Ending:
    """Returns how a stopped task ended; `task` comes from DescribeTasks, and may list no containers."""
    found = [one for one in task.get("containers") or [] if one.get("name") == container]
    state = found[0] if found else {}
    code, reason = state.get("exitCode"), str(state.get("reason") or "")
    stop_code, stopped = str(task.get("stopCode") or ""), str(task.get("stoppedReason") or "")
    stop = stop_reason(stop_code, stopped, reason, code, int(task.get("memory") or 0))
    return Ending(
        number=0,
        reason=stop.text,
        hint=stop.hint,
        out_of_memory=stop.kind == "memory",
        # a task that a person stopped is also replaced: its models still have to be built
        passing=stop.passing or stop.kind == "person",
        exit_code=code,
        started_at=_moment(task.get("pullStartedAt")) or _moment(task.get("startedAt")),
        stopped_at=_moment(task.get("stoppedAt")),
    )


def _moment(value: object) -> datetime | None:
    return value if isinstance(value, datetime) else None
