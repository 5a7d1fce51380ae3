"""Who wanted what a task does: the user in Airflow's own event log, never what a run's configuration says.

Airflow (2.10.5) writes an event into its table `log`, with the user who is logged in as `owner`, before it does what
was asked for (`airflow/www/decorators.py`, `action_logging`), and the DAG run that it makes or clears has the moment
when it was queued (`queued_at`; `models/dagrun.py`, `set_state`). So the event of a run is one of those just before
that moment. It names its run only where the caller has chosen the run's id, and what it says beside its owner can be
chosen by the caller too. Therefore an event is left out only where Airflow itself would have understood another run;
where events of several people are left, all are named. Somebody may hide among others, but never behind one of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

# Events that make a run: the UI's form, and the REST API, called by a browser (ui) or not.
_FORM = "trigger"
_API = frozenset({"api.post_dag_run", "ui.post_dag_run"})
_COMMAND = "cli_dag_trigger"
# Events that have a task done again, of one run or of many: REST API, pages of a DAG, lists.
_AGAIN = frozenset(
    {f"{way}.{name}" for way in ("api", "ui") for name in (
        "clear_dag_run", "post_clear_task_instances", "update_dag_run_state", "post_set_task_instances_state",
        "patch_task_instance", "patch_mapped_task_instance",
    )}
    | {"clear", "dagrun_clear", "dagrun_queued", "failed", "success", "cli_task_clear"}
    | {f"action_{name}" for name in ("clear", "clear_downstream", "set_queued", "set_running", "set_retry")}
    | {"dagrun.edit", "taskinstance.edit"}
)  # fmt: skip
# How long before its effect an event may have been written: what lies between is a look at the DAG and one write, in
# the command line Airflow's own start too, and where a task is cleared in a run that goes on, the scheduler's turn.
_WEB = timedelta(seconds=10)
_SLOW = timedelta(seconds=60)


def who_is(context: Any) -> str:
    """Who wanted a task of a DAG run, as releases name them.

    The user who has made the run, or cleared the task since: `ana`, `ana (cleared)`, `ana or bob` where it may have
    been either; `root (command line)` for `airflow dags trigger`, where the name is the operating system's. Where
    Airflow names nobody (a schedule, another DAG, an event log that was cleaned), the run: `airflow:<dag_id>/<run_id>`.

    Args:
        context: of the task, as Airflow gives it.
    """
    from airflow.utils.session import create_session

    run, task = context["dag_run"], context["task_instance"]
    with create_session() as session:
        names = _names(session, run, task, context["task"].retries)
    return " or ".join(names) or f"airflow:{run.dag_id}/{run.run_id}"


def _names(session: Any, run: Any, task: Any, retries: int) -> list[str]:
    """The distinct names, the latest first."""
    cleared = task.max_tries > retries and task.try_number > 1
    if cleared:
        before, after = (
            _try(session, task, number) for number in (task.max_tries - retries, task.max_tries - retries + 1)
        )
        began = before.start_date if before else None
        if run.queued_at is None or began is None or run.queued_at < began:
            # the run had not ended when its task was cleared; it was queued again soon after that
            moment = (after or task).queued_dttm
            return _people(_events(session, moment, _SLOW, _AGAIN), " (cleared)") if moment else []
    if run.queued_at is None:
        return []
    if cleared or run.clear_number:
        return _people(_events(session, run.queued_at, _WEB, _AGAIN), " (cleared)")
    asked = _events(session, run.queued_at, _SLOW, {_FORM, *_API, _COMMAND}, run.dag_id)
    requeued = _events(session, run.queued_at, _WEB, {"dagrun_queued", "action_set_queued"})
    web = [event for event in asked if event.event != _COMMAND and event.dttm >= run.queued_at - _WEB]
    return list(
        dict.fromkeys(
            [
                *_people([*requeued, *(event for event in web if _may_be_of(event, run.run_id))]),
                *_people([event for event in asked if event.event == _COMMAND], " (command line)"),
            ]
        )
    )


def _events(session: Any, moment: datetime, span: timedelta, kinds: Iterable[str], dag_id: str = "") -> list[Any]:
    """Events up to a moment, the latest first; of all DAGs where none is given."""
    from airflow.models.log import Log

    found = session.query(Log).filter(Log.dttm >= moment - span, Log.dttm <= moment, Log.event.in_(sorted(kinds)))
    if dag_id:
        found = found.filter(Log.dag_id == dag_id)
    return list(found.order_by(Log.id.desc()))


def _may_be_of(event: Any, run_id: str) -> bool:
    """Whether an event may be what has made this run.

    The form reads the run's id where the event has it from, too. The API reads it in the body, which is among what the
    event keeps, and not in the address, where the event has it from.
    """
    if event.event == _FORM:
        named = event.run_id
    else:
        try:
            named = json.loads(event.extra or "{}").get("dag_run_id")
        except (ValueError, AttributeError):
            named = None
    return not named or named == run_id


def _people(events: Iterable[Any], how: str = "") -> list[str]:
    return list(dict.fromkeys(f"{event.owner}{how}" for event in events if event.owner))


def _try(session: Any, task: Any, number: int) -> Any:
    """A former try of a task; None where Airflow has not kept it."""
    from airflow.models.taskinstancehistory import TaskInstanceHistory as Tries

    found = session.query(Tries).filter_by(
        dag_id=task.dag_id, run_id=task.run_id, task_id=task.task_id, map_index=task.map_index, try_number=number
    )
    return found.order_by(Tries.id).first()
