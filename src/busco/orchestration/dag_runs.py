"""Reads the state of DAG runs, and of their tasks that follow runners, from Airflow's database.

Airflow (2.10.5) marks a DAG run as failed in many transactions: one by one, it marks the tasks that have not started as
skipped, and it sets the run's own state last (`airflow/api/common/mark_tasks.py`, `set_dag_run_state_to_failed`). In
between, the scheduler may defer a task that it had read before the task was marked (`models/dagrun.py`,
`schedule_tis`), and thereby overwrite the mark. This happens most often to a joint test, which becomes ready as soon
as its models are skipped. Such a task then waits in a triggerer although its run is no longer scheduled. Each trigger
therefore checks whether it is still needed.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from busco.orchestration.async_aws import shared

log = logging.getLogger(__name__)

_EVERY = 2.0  # seconds between two queries for a run; each serves all of the run's tasks in this process
_FORGOTTEN = 60.0  # seconds after which a cached result that no task has refreshed is dropped
_OVER = frozenset({"failed", "success"})
_DELETED = "deleted"


@dataclass(frozen=True)
class Asked:
    """The state of a DAG run (`deleted` if the run no longer exists), and the triggers that its tasks wait for."""

    state: str
    waiting: frozenset[int]

    @property
    def is_over(self) -> bool:
        """Whether the run is no longer scheduled."""
        return self.state in _OVER or self.state == _DELETED


_latest: dict[tuple[int, str, str], tuple[float, Asked]] = {}


def ask(dag_id: str, run_id: str, classpath: str) -> Asked:
    """Queries Airflow's database for a DAG run's state, and for the triggers that its tasks wait for.

    Args:
        classpath: the import path of the trigger class to include; other triggers, such as a sensor's, do not follow a
            runner.
    """
    from airflow.models.dagrun import DagRun
    from airflow.models.taskinstance import TaskInstance
    from airflow.models.trigger import Trigger
    from airflow.utils.session import create_session
    from airflow.utils.state import TaskInstanceState

    with create_session() as session:
        state = session.query(DagRun.state).filter_by(dag_id=dag_id, run_id=run_id).scalar()
        rows = (
            session.query(TaskInstance.trigger_id)
            .join(Trigger, Trigger.id == TaskInstance.trigger_id)
            .filter(
                TaskInstance.dag_id == dag_id,
                TaskInstance.run_id == run_id,
                TaskInstance.state == TaskInstanceState.DEFERRED,
                Trigger.classpath == classpath,
            )
            .all()
        )
    return Asked(str(state) if state is not None else _DELETED, frozenset(int(trigger) for (trigger,) in rows))


async def unwanted(dag_id: str, run_id: str, classpath: str, trigger_id: int, wait: bool = True) -> Asked | None:
    """Waits until the DAG run is over or none of its tasks is waiting for this trigger, and returns the run's state.

    A query that fails is retried.

    Args:
        wait: if False, query only once, and return None if the trigger is still needed or the query failed.
    """
    while True:
        try:
            found = await _asked(dag_id, run_id, classpath, trigger_id)
            if not _needs(found, trigger_id):
                return found
        except Exception as error:
            log.warning("could not read the state of DAG run %s %s: %s", dag_id, run_id, error)
        if not wait:
            return None
        await asyncio.sleep(_EVERY)


def _needs(found: Asked, trigger_id: int) -> bool:
    return not found.is_over and trigger_id in found.waiting


async def _asked(dag_id: str, run_id: str, classpath: str, trigger_id: int) -> Asked:
    """Returns the run's state; a recently cached state is used if the trigger was still needed at that time.

    With the cache, one query serves a thousand tasks of a run.
    """
    loop = asyncio.get_running_loop()
    key, now = (id(loop), dag_id, run_id), loop.time()
    asked_at, found = _latest.get(key, (0.0, None))
    if found is not None and now - asked_at < _EVERY and _needs(found, trigger_id):
        return found
    for old in [other for other, (at, _) in _latest.items() if now - at > _FORGOTTEN]:
        del _latest[old]
    answer = await ask_now(dag_id, run_id, classpath)
    _latest[key] = (now, answer)
    return answer


async def ask_now(dag_id: str, run_id: str, classpath: str) -> Asked:
    """Returns the run's state from a query sent after this call; concurrent calls for the same run share one query."""
    answer: Asked = await shared(("dag run", dag_id, run_id), lambda: asyncio.to_thread(ask, dag_id, run_id, classpath))
    return answer


def active_runs() -> frozenset[tuple[str, str]]:
    """Returns the active DAG runs that have unfinished tasks, as pairs of DAG id and run id.

    Unfinished tasks include those without a state, which the scheduler has not reached yet: between two levels of a
    run's graph, these can be the only unfinished tasks.
    """
    from airflow.models.dagrun import DagRun
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session
    from airflow.utils.state import State, TaskInstanceState
    from sqlalchemy import and_, or_

    unfinished = [state for state in State.unfinished if isinstance(state, TaskInstanceState)]
    with create_session() as session:
        rows = (
            session.query(TaskInstance.dag_id, TaskInstance.run_id)
            .join(DagRun, and_(DagRun.dag_id == TaskInstance.dag_id, DagRun.run_id == TaskInstance.run_id))
            .filter(DagRun.state.not_in(_OVER), or_(TaskInstance.state.is_(None), TaskInstance.state.in_(unfinished)))
            .distinct()
            .all()
        )
    return frozenset((dag_id, run_id) for dag_id, run_id in rows)
