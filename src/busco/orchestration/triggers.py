"""Model and test tasks that live in the triggerer: one coroutine each, no process."""

from __future__ import annotations

import asyncio
import textwrap
from collections.abc import AsyncIterator
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
    """Follows a run's runners for one try of one task, and ends the task with what they say.

    All arguments are plain names: nothing in them is secret. `dag_id`, `run_id` and `attempt` are given only where the
    task was deferred by a worker (`dags test`, backfill); else they are those of the task instance.
    """

    def __init__(
        self,
        task: str,
        nodes: list[str],
        along: list[str],
        label: str,
        dag_id: str = "",
        run_id: str = "",
        attempt: int = 0,
        end_task: bool = True,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.task, self.nodes, self.along, self.label = task, nodes, along, label
        self.dag_id, self.run_id, self.attempt, self.end_task = dag_id, run_id, attempt, end_task

    def serialize(self) -> tuple[str, dict[str, Any]]:
        names = ("task", "nodes", "along", "label", "dag_id", "run_id", "attempt", "end_task")
        return "busco.orchestration.triggers.FollowTrigger", {name: getattr(self, name) for name in names}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        # imported here: Airflow's webserver and scheduler load this module, and need none of it
        from busco.orchestration.follow import Ended, Follow, Job, Superseded
        from busco.orchestration.watch import watch

        instance: Any = self.task_instance
        dag_id = self.dag_id or instance.dag_id
        run_id = self.run_id or instance.run_id
        attempt = self.attempt or instance.try_number
        settings = get_settings()
        try:
            watched = await watch(settings, run_key(dag_id, run_id))
        except LookupError as error:
            yield self._event("failed", f"{self.label} failed: {error}\n  → clear the pin task", "")
            return
        job = Job(self.task, attempt, tuple(self.nodes), tuple(self.along), self.label)
        follow = Follow(watched, job, settings.runner_restarts)
        name = f"{self.task}/{attempt}"
        try:
            await watched.enter(name)
            ended = await follow.run()
        except asyncio.CancelledError:
            watched.leave(name)
            await asyncio.shield(self._cancelled(watched, follow))
            raise
        except Superseded:
            ended = Ended("failed", f"{self.label}: a later try of this task has begun")
        except BuscoError as error:
            ended = Ended("failed", f"{self.label} failed: {error}")
        except Exception as error:
            self.log.exception("following run %s", watched.pin.run)
            ended = Ended("failed", f"{self.label} failed: {type(error).__name__}: {error}")
        finally:
            watched.leave(name)
        yield self._event(ended.state, ended.text, ended.details)

    def _event(self, state: str, text: str, details: str) -> TriggerEvent:
        if not self.end_task:
            return TriggerEvent({"state": state, "text": text, "details": details})
        (self.log.error if state == "failed" else self.log.info)("%s", text)
        if details:
            # indented: Airflow's log reader sorts lines that begin with a time, ours among dbt's
            self.log.info("dbt's log:\n%s", textwrap.indent(details, "  "))
        if state == "success":
            return TaskSuccessEvent()
        return TaskSkippedEvent() if state == "skipped" else TaskFailedEvent()

    async def _cancelled(self, watched: Any, follow: Any) -> None:
        """Stops the runner if the task was cleared or marked and nobody else follows it (R10); the triggerer's own
        shutdown stops nothing: Airflow's database knows which it is."""
        from busco.orchestration.follow import SHARED

        if self.task_instance is not None and await asyncio.to_thread(self._still_deferred):
            return
        await watched.abandon(follow.slot)
        if follow.own is not None:
            await watched.launcher.stop(follow.own)
        elif not watched.followers:
            await watched.abandon(SHARED)
            for number, runner in watched.runners.items():
                if runner.kind == "shared" and number not in watched.gone:
                    await watched.launcher.stop(runner)

    def _still_deferred(self) -> bool:
        from airflow.models.taskinstance import TaskInstance
        from airflow.utils.session import create_session
        from airflow.utils.state import TaskInstanceState

        instance: Any = self.task_instance
        with create_session() as session:
            row = (
                session.query(TaskInstance.state, TaskInstance.trigger_id)
                .filter_by(
                    dag_id=instance.dag_id,
                    run_id=instance.run_id,
                    task_id=instance.task_id,
                    map_index=instance.map_index,
                )
                .one_or_none()
            )
        return row is not None and row.state == TaskInstanceState.DEFERRED and row.trigger_id == self.trigger_id
