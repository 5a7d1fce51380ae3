"""The trigger that runs a model, test or docs task in the triggerer, as a coroutine instead of a process."""

from __future__ import annotations

import asyncio
import textwrap
from collections.abc import AsyncIterator, Coroutine
from dataclasses import replace
from typing import Any

from airflow.triggers.base import (
    BaseTrigger,
    TaskFailedEvent,
    TaskSkippedEvent,
    TaskSuccessEvent,
    TriggerEvent,
)

from busco.errors import BuscoError
from busco.lake.layout import run_key
from busco.settings import get_settings


class FollowTrigger(BaseTrigger):
    """Follows a run's runners for one try of one task, and ends the task with their results.

    The arguments contain no secrets. `dag_id`, `run_id` and `attempt` are set only if a worker deferred the task
    (`dags test`, backfill); otherwise, their values come from the task instance.
    """

    def __init__(
        self,
        task: str,
        nodes: list[str],
        along: list[str],
        label: str,
        size: str = "",
        joint: bool = False,
        dag_id: str = "",
        run_id: str = "",
        attempt: int = 0,
        end_task: bool = True,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.task, self.nodes, self.along, self.label = task, nodes, along, label
        self.size, self.joint = size, joint
        self.dag_id, self.run_id, self.attempt, self.end_task = dag_id, run_id, attempt, end_task
        self._is_released = False

    def serialize(self) -> tuple[str, dict[str, Any]]:
        names = ("task", "nodes", "along", "label", "size", "joint", "dag_id", "run_id", "attempt", "end_task")
        return _CLASSPATH, {name: getattr(self, name) for name in names}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        # imported here: Airflow's webserver and scheduler load this module but do not need these
        from botocore.exceptions import BotoCoreError, ClientError

        from busco.orchestration.follow import Ended, Follow, Job, Superseded
        from busco.orchestration.patience import to_the_end
        from busco.orchestration.watches import watch

        instance: Any = self.task_instance
        dag_id = self.dag_id or instance.dag_id
        run_id = self.run_id or instance.run_id
        attempt = self.attempt or instance.try_number
        settings = get_settings()
        if self.end_task and instance is not None and instance.end_date is not None:
            await asyncio.to_thread(self._forget_earlier_end)
        job = Job(self.task, attempt, tuple(self.nodes), tuple(self.along), self.label, self.size, self.joint)
        run = run_key(dag_id, run_id)
        try:
            watched = await watch(settings, run, job.slot)
        except LookupError as error:
            yield self._event("failed", f"{self.label} failed: {error}\n  → clear the pin task", "")
            return
        except Exception as error:
            self.log.exception("could not read the pin of run %s", run)
            text = f"{self.label} failed: the pin of run {run} could not be read: {type(error).__name__}: {error}"
            yield self._event("failed", f"{text}\n  → clear this task when S3 is available again", "")
            return
        follow = Follow(watched, job, settings.runner_restarts, settings.execution == "ecs", self.log.info)
        try:
            await watched.enter(job.slot)
            ended = await self._followed(watched, follow)
        except asyncio.CancelledError:
            await to_the_end(f"stopping the runners of {self.label}", self._cancelled(watched, follow))
            raise
        except Superseded:
            ended = Ended("failed", f"{self.label}: a later try of this task has started")
        except BuscoError as error:
            ended = Ended("failed", f"{self.label} failed: {error}")
        except (BotoCoreError, ClientError) as error:
            self.log.exception("failed to follow run %s", watched.pin.run)
            text = f"{self.label} failed: calls to AWS kept failing: {type(error).__name__}: {error}"
            hint = "clear this task when S3 and ECS are available again; finished results are kept"
            ended = Ended("failed", f"{text}\n  → {hint}")
        except Exception as error:
            self.log.exception("failed to follow run %s", watched.pin.run)
            ended = Ended("failed", f"{self.label} failed: {type(error).__name__}: {error}")
        finally:
            watched.leave(job.slot)
        if ended.state == "failed":
            ended = replace(ended, text=ended.text + await asyncio.to_thread(self._stale, settings, watched.pin))
        yield self._event(ended.state, ended.text, ended.details)

    def _forget_earlier_end(self) -> None:
        """Clears the end date left by an earlier try or a blocked state, since it would be before the start date.

        A worker clears the end date when it starts a task. For a task that starts in the triggerer, Airflow 2.10 does
        not clear it, and `TaskInstance.set_state` keeps an existing end date.
        """
        from airflow.models.taskinstance import TaskInstance
        from airflow.utils.session import create_session

        instance: Any = self.task_instance
        try:
            with create_session() as session:
                session.query(TaskInstance).filter_by(
                    dag_id=instance.dag_id,
                    run_id=instance.run_id,
                    task_id=instance.task_id,
                    map_index=instance.map_index,
                    trigger_id=self.trigger_id,
                ).update({TaskInstance.end_date: None})
        except Exception as error:
            # the only consequence of this error is a wrong duration
            self.log.warning("could not clear the end date of this task's earlier try: %s", error)

    def _stale(self, settings: Any, pin: Any) -> str:
        """Returns the last line of a failure's text: the gold tables that it leaves stale, or '' if there are none."""
        from busco.orchestration.alerts import stale_of

        try:
            tables = stale_of(settings, pin, self.nodes)
        except Exception as error:
            # this line is only for the log; the failure itself must be reported in any case
            self.log.warning("could not determine which tables stay stale: %s", error)
            return ""
        return f"\nstale until this is fixed: {', '.join(tables)}" if tables else ""

    def _event(self, state: str, text: str, details: str) -> TriggerEvent:
        if not self.end_task:
            return TriggerEvent({"state": state, "text": text, "details": details})
        (self.log.error if state == "failed" else self.log.info)("%s", text)
        if details:
            # indented: Airflow's log reader sorts lines that begin with a time, which would mix our lines with dbt's
            self.log.info("dbt's log:\n%s", textwrap.indent(details, "  "))
        if state == "success":
            return TaskSuccessEvent()
        return TaskSkippedEvent() if state == "skipped" else TaskFailedEvent()

    async def _followed(self, watched: Any, follow: Any) -> Any:
        """Follows the run's runners until the task or its DAG run ends. The DAG run is watched because Airflow may
        leave a task waiting in a run that was marked as failed and is no longer scheduled (dag_runs.py)."""
        from busco.orchestration import dag_runs
        from busco.orchestration.patience import to_the_end

        if self.task_instance is None:
            # in `dags test`, there is no triggerer
            return await follow.run()
        instance: Any = self.task_instance

        def unwanted(wait: bool) -> Coroutine[Any, Any, Any]:
            return dag_runs.unwanted(instance.dag_id, instance.run_id, _CLASSPATH, self.trigger_id or 0, wait)

        found = await unwanted(wait=False)
        if found is None:
            following = asyncio.create_task(follow.run())
            over = asyncio.create_task(unwanted(wait=True))
            try:
                await asyncio.wait({following, over}, return_when=asyncio.FIRST_COMPLETED)
                if not over.done():
                    return following.result()
                found = over.result()
            finally:
                # before releasing anything, cancel the start of a runner if one is in progress
                await to_the_end(f"cancelling {self.label}", _cancel(following, over))
        assert found is not None
        return await self._unwanted(watched, follow, found)

    async def _unwanted(self, watched: Any, follow: Any, found: Any) -> Any:
        """Stops the task's runner unless another task follows it. If the DAG run is over, returns how the task ends.

        Otherwise, the task was cleared, or marked as success or failed. This trigger must not end the task, so it waits
        until the triggerer cancels this trigger. If the task was cleared, that happens only once the task is scheduled
        again, which may never happen in a paused DAG.
        """
        from busco.orchestration.follow import SHARED, Ended
        from busco.orchestration.patience import to_the_end

        cause = f"its DAG run was {'deleted' if found.state == 'deleted' else f'marked as {found.state}'}"
        reason = (
            f"{self.label}: {cause if found.is_over else 'it was cleared, or marked as success or failed, in Airflow'}"
        )
        self._is_released = True
        release = watched.release(follow.slot, SHARED, reason, self._elsewhere(found))
        await to_the_end(f"stopping the runners of {self.label}", release)
        if not found.is_over:
            await asyncio.Event().wait()
        if found.state == "failed":
            return Ended("failed", f"{self.label} was stopped: {cause}\n  → clear the run's tasks to resume it")
        return Ended("skipped", f"{self.label} did not finish: {cause}")

    async def _cancelled(self, watched: Any, follow: Any) -> None:
        """Stops the task's runner if the task was cleared or marked with a state and no other task follows it (R10).

        Nothing is stopped if the triggerer is shutting down, or if the trigger moves to another triggerer; Airflow's
        database shows which case applies. If the database can't be queried, nothing is stopped either; on ECS, the
        maintenance DAG stops runners that no task follows.
        """
        from busco.orchestration import dag_runs
        from busco.orchestration.follow import SHARED
        from busco.orchestration.patience import patiently

        if self._is_released:
            return
        elsewhere = 0
        if self.task_instance is not None:
            instance: Any = self.task_instance
            what = f"querying Airflow's database for DAG run {instance.dag_id} {instance.run_id}"
            found = await patiently(what, lambda: dag_runs.ask_now(instance.dag_id, instance.run_id, _CLASSPATH))
            if self.trigger_id in found.waiting:
                return
            elsewhere = self._elsewhere(found)
        reason = f"{self.label} was cleared, or marked as success or failed, in Airflow"
        await watched.release(follow.slot, SHARED, reason, elsewhere)

    def _elsewhere(self, found: Any) -> int:
        """Returns how many other tasks of the DAG run follow a runner; 0 if the run is over, as they will end soon."""
        return 0 if found.is_over else len(found.waiting - {self.trigger_id})


async def _cancel(*tasks: asyncio.Task[Any]) -> None:
    """Cancels tasks and waits until they have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


_CLASSPATH = f"{FollowTrigger.__module__}.{FollowTrigger.__qualname__}"
