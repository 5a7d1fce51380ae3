"""What Airflow's database says of a DAG run and of its tasks that follow runners.

Airflow (2.10.5) marks a DAG run failed in many transactions: it skips the tasks that have not begun one by one, and the
run's own state comes last (`airflow/api/common/mark_tasks.py`, `set_dag_run_state_to_failed`). Meanwhile the scheduler
may defer a task that it read before it was skipped (`models/dagrun.py`, `schedule_tis`), and overwrites the mark: most
often a test over several models, which is ready as soon as those are skipped. Such a task waits in a triggerer, while
nobody schedules the run any more. Therefore each trigger asks whether it is still wanted.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from busco.orchestration.async_aws import shared

log = logging.getLogger(__name__)

_EVERY = 2.0  # seconds between two questions, one for all of a run's tasks in this process
_FORGOTTEN = 60.0  # seconds that an answer is kept: nobody has asked since
_OVER = frozenset({"failed", "success"})
_DELETED = "deleted"


@dataclass(frozen=True)
class Asked:
    """A DAG run: its state (`deleted` where there is none), and the triggers that its tasks wait for."""

    state: str
    waiting: frozenset[int]

    @property
    def is_over(self) -> bool:
        """Whether nobody schedules the run any more."""
        return self.state in _OVER or self.state == _DELETED


_latest: dict[tuple[int, str, str], tuple[float, Asked]] = {}


def ask(dag_id: str, run_id: str, classpath: str) -> Asked:
    """Asks Airflow's database.

    Args:
        classpath: of the triggers that count; others, of a sensor for instance, follow no runner.
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
    """Waits until the DAG run is over, or its task waits for another trigger, or for none; what was found then.

    A database that does not answer is asked again.

    Args:
        wait: else it asks once, and gives None while the trigger is wanted.
    """
    while True:
        try:
            found = await _asked(dag_id, run_id, classpath, trigger_id)
            if not _wants(found, trigger_id):
                return found
        except Exception as error:
            log.warning("the state of DAG run %s %s is not known: %s", dag_id, run_id, error)
        if not wait:
            return None
        await asyncio.sleep(_EVERY)


def _wants(found: Asked, trigger_id: int) -> bool:
    return not found.is_over and trigger_id in found.waiting


async def _asked(dag_id: str, run_id: str, classpath: str, trigger_id: int) -> Asked:
    """What the database says now, or, where that is all well for the trigger, what it has just said to another one: a
    thousand tasks of a run cost one question."""
    loop = asyncio.get_running_loop()
    key, now = (id(loop), dag_id, run_id), loop.time()
    asked_at, found = _latest.get(key, (0.0, None))
    if found is not None and now - asked_at < _EVERY and _wants(found, trigger_id):
        return found
    for old in [other for other, (at, _) in _latest.items() if now - at > _FORGOTTEN]:
        del _latest[old]
    answer = await ask_now(dag_id, run_id, classpath)
    _latest[key] = (now, answer)
    return answer


async def ask_now(dag_id: str, run_id: str, classpath: str) -> Asked:
    """What the database says after this call; one question for all of a run's tasks that ask while it is put."""
    answer: Asked = await shared(("dag run", dag_id, run_id), lambda: asyncio.to_thread(ask, dag_id, run_id, classpath))
    return answer


def active_runs() -> frozenset[tuple[str, str]]:
    """The DAG runs, as DAG and run id, that go on and have tasks that have not ended.

    A task that the scheduler has not reached yet has no state: between two levels of its graph a run may have only
    such ones.
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
