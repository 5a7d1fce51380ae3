"""Finds and stops ECS tasks that nobody follows any more, using Airflow's database and the lake's records.

Normally, the task that follows a runner stops it. A runner is left behind if that was impossible: Airflow was down, or
could not reach ECS, when the run was cleared, deleted, or marked as success or failed. Nobody waits for such a runner's
output, but it costs money and occupies a slot.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from busco.aws import client
from busco.lake.layout import EnvironmentLayout, run_key
from busco.lake.objects import ObjectStore
from busco.lake.records import utc_now
from busco.lake.runs import newest_epoch
from busco.orchestration.ecs_task import STARTED_BY
from busco.orchestration.places import STALE, is_over
from busco.settings import Settings, get_settings, require_lake

if TYPE_CHECKING:
    from busco.orchestration.slots import Slots

log = logging.getLogger(__name__)

GRACE = timedelta(minutes=2)
# Seconds. Between two levels of its graph, a run briefly has no task that follows a runner, so a runner is checked
# twice.
_AGAIN = 20.0
_MOST = 100  # the most tasks that DescribeTasks accepts per call (API reference, DescribeTasks)


@dataclass(frozen=True)
class RunnerTask:
    """An ECS task that is one of the platform's runners, with its run, epoch and order."""

    arn: str
    environment: str
    run: str
    epoch: int
    order: str
    created_at: datetime


@dataclass(frozen=True)
class Unfollowed:
    """A runner to be stopped, and why."""

    task: RunnerTask
    why: str

    @property
    def reason(self) -> str:
        """The stopped reason that ECS shows."""
        one = self.task
        return f"busco maintenance: {self.why} (run {one.run}, epoch {one.epoch}, {one.order})"


def unfollowed(
    tasks: Iterable[RunnerTask],
    environment: str,
    followed: Set[str],
    newest: Mapping[str, int | None],
    now: datetime,
    grace: timedelta = GRACE,
) -> list[Unfollowed]:
    """Returns the tasks that nobody follows.

    Args:
        tasks: the runners that are running in ECS.
        environment: the environment to check; runners of other environments belong to another Airflow.
        followed: the keys of the runs that are active in Airflow.
        newest: each run's newest epoch (R1), or None if the lake has no such run.
        grace: the minimum age of a task; a younger task may not have been recorded as followed yet.
    """
    found = []
    for task in tasks:
        if task.environment != environment or now - task.created_at < grace:
            continue
        epoch = newest.get(task.run)
        if epoch is not None and epoch > task.epoch:
            found.append(Unfollowed(task, f"epoch {epoch} of its run has begun"))
        elif task.run not in followed:
            found.append(Unfollowed(task, "no Airflow task of its run is waiting for it"))
    return found


def runner_task(task: Mapping[str, Any], container: str) -> RunnerTask | None:
    """Converts a task from DescribeTasks to a runner; returns None if it is not one of our runners."""
    if not str(task.get("startedBy") or "").startswith(STARTED_BY):
        return None
    overrides = (task.get("overrides") or {}).get("containerOverrides") or []
    given: Mapping[str, Any] = next((one for one in overrides if one.get("name") == container), {})
    words = given.get("command") or []
    options = dict(pairwise(words))
    variables = {one["name"]: one["value"] for one in given.get("environment") or []}
    run, epoch, created = options.get("--run"), options.get("--epoch", ""), task.get("createdAt")
    if words[:1] != ["runner"] or not run or not epoch.isdigit() or not isinstance(created, datetime):
        return None
    order = f"{options.get('--order', '')}/{options.get('--generation', '')}"
    return RunnerTask(str(task["taskArn"]), variables.get("BUSCO_ENVIRONMENT", ""), run, int(epoch), order, created)


def reap() -> list[str]:
    """Stops the runners that nobody follows, and frees the slots of those that are gone.

    This is an Airflow task that runs in a worker.

    Returns:
        the run of each stopped runner.
    """
    from busco.orchestration.slots import Slots

    settings = require_lake(get_settings())
    reaper = Reaper(
        settings,
        client("ecs", settings),
        ObjectStore(client("s3", settings), settings.lake_bucket),
        Slots.of_airflow(settings.max_ecs_tasks),
        followed_runs,
    )
    stopped = reaper.reap()
    freed = reaper.free_places()
    log.info("stopped=%s slots_freed=%s", len(stopped), freed)
    return [one.task.run for one in stopped]


@dataclass
class Reaper:
    """Finds and stops unfollowed runners, using the current state of ECS, the lake and Airflow's database.

    Args:
        followed: returns the keys of the runs that are active in Airflow.
        again: seconds between the two checks.
        stale: seconds without a heartbeat after which a slot is checked.
    """

    settings: Settings
    ecs: Any
    store: ObjectStore
    slots: Slots
    followed: Callable[[], Set[str]]
    again: float = _AGAIN
    grace: timedelta = GRACE
    stale: float = STALE

    def reap(self) -> list[Unfollowed]:
        """Stops the runners that two checks found unfollowed."""
        first = self.look()
        if not first:
            return []
        time.sleep(self.again)
        known = {one.task.arn for one in first}
        found = [one for one in self.look() if one.task.arn in known]
        for one in found:
            self._stop(one)
        return found

    def look(self) -> list[Unfollowed]:
        """Returns the runners that nobody follows right now."""
        tasks = self._runners()
        if not tasks:
            return []
        environment = EnvironmentLayout(self.settings.environment)
        newest = {run: newest_epoch(self.store, environment, run) for run in {task.run for task in tasks}}
        return unfollowed(tasks, environment.environment, self.followed(), newest, utc_now(), self.grace)

    def free_places(self) -> int:
        """Frees the slots of stopped tasks whose follower has died. Returns their number."""
        freed = asyncio.run(self._free())
        for token in freed:
            log.info("freed the slot of order=%s: its task has stopped", token)
        return len(freed)

    async def _free(self) -> list[str]:
        # imported here: only Airflow's machines have these libraries, and `look` does not need them
        from busco.orchestration.async_aws import forget_clients
        from busco.orchestration.ecs import EcsLauncher

        try:
            return await EcsLauncher(self.settings, self.slots, self.stale).places.free()
        finally:
            await forget_clients()

    def _runners(self) -> list[RunnerTask]:
        pages = self.ecs.get_paginator("list_tasks").paginate(cluster=self.settings.ecs_cluster)
        arns = [str(arn) for page in pages for arn in page["taskArns"]]
        found = [runner_task(task, self.settings.ecs_container) for task in self._described(arns) if _lives(task)]
        return [task for task in found if task is not None]

    def _described(self, arns: Sequence[str]) -> list[Mapping[str, Any]]:
        found: list[Mapping[str, Any]] = []
        for start in range(0, len(arns), _MOST):
            some = arns[start : start + _MOST]
            found += self.ecs.describe_tasks(cluster=self.settings.ecs_cluster, tasks=some).get("tasks") or []
        return found

    def _stop(self, one: Unfollowed) -> None:
        task = one.task
        try:
            self.ecs.stop_task(cluster=self.settings.ecs_cluster, task=task.arn, reason=one.reason[:255])
        except ClientError as error:
            if "not found" not in str(error):
                raise
        log.warning("stopped run=%s epoch=%s order=%s task=%s: %s", task.run, task.epoch, task.order, task.arn, one.why)


def followed_runs() -> frozenset[str]:
    """Returns the keys of the runs that are active in Airflow: one of their tasks follows a runner, or will."""
    from busco.orchestration.dag_runs import active_runs

    return frozenset(run_key(dag_id, run_id) for dag_id, run_id in active_runs())


def _lives(task: Mapping[str, Any]) -> bool:
    """Whether a task is running and has not been asked to stop."""
    return not is_over(task) and task.get("desiredStatus") != "STOPPED"
