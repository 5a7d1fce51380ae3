"""Runners as ECS tasks (BUSCO_EXECUTION=ecs_shared, ecs): how they are started, seen, stopped and counted."""

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

_EVERY = 1.5  # seconds between two looks at one ECS task
_MOST = 100  # tasks that one DescribeTasks takes (API reference, DescribeTasks)
# A task that ECS has just started may be unknown to DescribeTasks for `UNSEEN` seconds; one that was seen before has
# expired, or ECS was restarted.
_VANISHED = 4.0


@dataclass
class Seen:
    """What is known of an ECS task; times are of the monotonic clock."""

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
    """Starts one ECS task for each order, within the number of places.

    An order's token is in `startedBy` of its task: whoever starts it again, in another triggerer or after a restart,
    gets the same one. The real fence against two is the table's entry (R4).

    Args:
        stale: seconds without a heartbeat after which a place without a task is looked into.
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
        """Starts `busco <words>` in dbt's image, once for each token, when there is a place for it.

        Args:
            token: at most 32 characters: a client token of ECS begins with it.
            label: what its place is shown as.

        Raises:
            CannotStart: there is no use in waiting.
        """

        async def run(client_token: str) -> str:
            return await self._run(self.request(words, token, size, client_token))

        arn = await self.places.start(token, label, run, say)
        self._tasks.setdefault(arn, Seen(looked_at=time.monotonic()))
        say(f"started ECS task {arn} (size {size or self.settings.ecs_size})")
        return EcsTask(self, arn)

    async def end_of(self, task: EcsTask) -> Ending:
        """Waits until a task has ended; stops it where nobody waits any more."""
        try:
            while (ending := self.seen(task.arn).ending) is None:
                await asyncio.sleep(_EVERY)
                await self._see([task.arn])
            return ending
        except BaseException:
            await task.stop("whoever waited for it was stopped")
            raise

    async def resume(self, pin: Pin, order: Order, say: Say) -> EcsTask:
        return await self.start(pin, order, say)

    async def discard(self, order: Order, reason: str) -> None:
        await self.places.discard(order.token, reason)

    async def _run(self, request: Mapping[str, Any]) -> str:
        """RunTask, once; gives the task's ARN.

        Raises:
            Unreachable: ECS has started none, or has given no answer.
        """
        ecs = await async_client("ecs", self.settings)
        with _answers():
            answer = await ecs.run_task(**request)
        if tasks := answer.get("tasks"):
            return str(tasks[0]["taskArn"])
        failure = (answer.get("failures") or [{}])[0]
        stop = stop_reason("", str(failure.get("reason") or ""), str(failure.get("detail") or ""))
        raise Unreachable(stop, _at_once(answer))

    def request(self, words: Sequence[str], token: str, size: str = "", client_token: str = "") -> dict[str, Any]:
        """RunTask's arguments."""
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

    # -- what the places ask (places.Tasks) ---------------------------------------------------------------------------

    async def of(self, token: str) -> list[str]:
        ecs, cluster = await async_client("ecs", self.settings), self.settings.ecs_cluster
        found: list[str] = []
        with _answers():
            for status in LISTED:
                answer = await ecs.list_tasks(cluster=cluster, startedBy=started_by(token), desiredStatus=status)
                found += map(str, answer.get("taskArns") or [])
        return found

    async def living(self, token: str) -> list[str]:
        found = await self.of(token)
        if not found:
            return []
        ecs = await async_client("ecs", self.settings)
        with _answers():
            answer = await ecs.describe_tasks(cluster=self.settings.ecs_cluster, tasks=found)
        # one that is listed and can't be described has just been started
        over = {str(task["taskArn"]) for task in answer.get("tasks") or [] if is_over(task)}
        return [arn for arn in found if arn not in over]

    async def over(self, holders: Collection[Holder]) -> set[str]:
        with _answers():
            await self._describe([holder.arn for holder in holders])
        found = set()
        for holder in holders:
            seen = self.seen(holder.arn)
            # nobody has just started what was started long ago: what ECS does not know of it, it has forgotten
            if seen.ending or (seen.missing_since is not None and holder.seconds > self.places.stale):
                found.add(holder.arn)
        return found

    # -- seeing -------------------------------------------------------------------------------------------------------

    def seen(self, arn: str) -> Seen:
        return self._tasks.setdefault(arn, Seen())

    async def look(self, runners: Sequence[Runner], handles: Sequence[Starting]) -> Mapping[int, Ending]:
        arns = {runner.arn for runner in runners if runner.arn}
        arns |= {handle.arn for handle in handles if isinstance(handle, EcsTask) and handle.alive()}
        await self._see(sorted(arns))
        gone: dict[int, Ending] = {}
        for runner in runners:
            ending = self.seen(runner.arn).ending if runner.arn else Ending(number=0, reason="it is no ECS task")
            if ending is not None:
                gone[runner.number] = ending.model_copy(update={"number": runner.number})
        return gone

    async def _see(self, arns: Sequence[str]) -> None:
        """Brings up to date what is known of tasks; frees the places of those that are over."""
        await asyncio.to_thread(self.slots.gone, await self._describe(arns))

    async def _describe(self, arns: Sequence[str]) -> list[str]:
        """Asks ECS for those that were not asked for just now; gives those that were seen to be over for the first
        time."""
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
                    reason = "ECS does not know its task any more: it has expired, or ECS was restarted"
                    seen.ending = Ending(number=0, reason=reason, passing=True)
                    ended.append(str(failure["arn"]))
        return ended

    # -- stopping, and what was printed -------------------------------------------------------------------------------

    async def stop(self, runner: Runner, reason: str) -> None:
        if runner.arn:
            await self.stop_task(runner.arn, reason)

    async def stop_task(self, arn: str, reason: str) -> None:
        """StopTask; a task that ECS does not know is gone already.

        Raises:
            Unreachable: ECS refuses, or does not answer.
        """
        ecs = await async_client("ecs", self.settings)
        with _answers():
            try:
                await ecs.stop_task(cluster=self.settings.ecs_cluster, task=arn, reason=reason[:255])
            except ClientError as error:
                if "not found" not in str(error):
                    raise

    async def tail(self, runner: Runner) -> str:
        return await self.output(runner.arn) if runner.arn else ""

    async def output(self, arn: str, lines: int = 20) -> str:
        """The last lines of a task's output in CloudWatch; '' where they can't be had: no result waits for them."""
        try:
            logs = await async_client("logs", self.settings)
            answer = await logs.get_log_events(
                logGroupName=self.settings.ecs_log_group,
                logStreamName=log_stream(self.settings, arn),
                limit=lines,
                startFromHead=False,
            )
        except (ClientError, BotoCoreError) as error:
            log.info("no output of %s: %s", arn, error)
            return ""
        return "\n".join(str(event["message"]) for event in answer.get("events") or [])


@contextmanager
def _answers() -> Iterator[None]:
    """Turns what a call of ECS raises into `Unreachable`."""
    try:
        yield
    except ClientError as error:
        said = error.response["Error"]
        stop = stop_reason("", f"{said.get('Code', '')}: {said.get('Message', '')}")
        is_server = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500) >= 500
        raise Unreachable(stop, not is_server and _at_once(error.response)) from error
    except ParamValidationError as error:
        stop = Stop("api", f"the request is wrong: {error}", "see the settings BUSCO_ECS_*")
        raise Unreachable(stop) from error
    except BotoCoreError as error:
        # Also what never came to a connection, and missing credentials: their provider may be away. It is not sure that
        # nothing was started: the client asks several times, and this is only the error of the last time.
        hint = "see that its endpoint can be reached, and that Airflow's machine has credentials"
        raise Unreachable(Stop("network", f"no answer from ECS: {error}", hint, True), False) from error


def _at_once(answer: Mapping[str, Any]) -> bool:
    """Whether the client asked only once: an earlier question may have been heard, though its answer was lost."""
    return not answer.get("ResponseMetadata", {}).get("RetryAttempts", 0)


def log_stream(settings: Settings, arn: str) -> str:
    """The CloudWatch stream of a task's container (ECS developer guide, awslogs-stream-prefix)."""
    return f"{settings.ecs_log_prefix}/{settings.ecs_container}/{arn.rsplit('/', 1)[-1]}"


def ending_of(task: Mapping[str, Any], container: str) -> Ending:
    """How a stopped task has ended: `task` is as DescribeTasks gives it; its list of containers may be empty."""
    found = [one for one in task.get("containers") or [] if one.get("name") == container]
    said = found[0] if found else {}
    code, reason = said.get("exitCode"), str(said.get("reason") or "")
    stop_code, stopped = str(task.get("stopCode") or ""), str(task.get("stoppedReason") or "")
    stop = stop_reason(stop_code, stopped, reason, code, int(task.get("memory") or 0))
    return Ending(
        number=0,
        reason=stop.text,
        hint=stop.hint,
        out_of_memory=stop.kind == "memory",
        # whoever stops a task by hand wants it gone now, not its models never built
        passing=stop.passing or stop.kind == "person",
        exit_code=code,
        started_at=_moment(task.get("pullStartedAt")) or _moment(task.get("startedAt")),
        stopped_at=_moment(task.get("stoppedAt")),
    )


def _moment(value: object) -> datetime | None:
    return value if isinstance(value, datetime) else None
