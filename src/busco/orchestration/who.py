"""Who wanted what a task does: the user in Airflow's own event log, never what a run's configuration says.

Airflow (2.10.5) writes an event into its table `log`, with the user who is logged in as `owner`, before it does what
was asked for (`airflow/www/decorators.py`, `action_logging`), and the DAG run that it makes or clears has the moment
when it was queued (`queued_at`; `models/dagrun.py`, `set_state`). So the event of a run is one of those just before
that moment, and no earlier than a request may take. It names its run only where the caller has chosen the run's id, and
what it says beside its owner can be chosen by the caller too. Therefore an event is left out only where Airflow itself
would have understood another run or DAG (`busco.orchestration.guard` refuses what gives two ids); where events of
several people are left, all are named. Somebody may hide among others, but never behind one of them.
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
_MADE = frozenset({_FORM, *_API, _COMMAND})
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
# Those of them whose DAG is not the event's: lists have it by a row's key, whatever else is sent, and the command line
# may have a pattern.
_OF_ANY = frozenset(name for name in _AGAIN if name.startswith(("action_", "cli_")) or name.endswith(".edit"))
# Those of them by which a run is queued though nothing was cleared.
_QUEUED = frozenset({"dagrun_queued", "action_set_queued", "api.update_dag_run_state", "ui.update_dag_run_state"})
# How long before its effect an event may have been written: as long as the webserver lets a request take (Airflow's
# `web_server_worker_timeout`), whatever slows it down, or the command line, which starts Airflow itself.
_SPAN = timedelta(seconds=120)


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
        # a run that had not ended when its task was cleared is not queued again: the scheduler takes the task up
        queued = run.queued_at if run.queued_at and began and run.queued_at >= began else (after or task).queued_dttm
        if queued is None:
            return []
        # the scheduler may have waited, as for a DAG that was paused, or for somebody else to have the run queued
        since = min(began or queued, queued - _SPAN)
        return _people(_events(session, since, queued, _AGAIN, run.dag_id), " (cleared)")
    if run.queued_at is None:
        return []
    since = run.queued_at - _SPAN
    if run.clear_number:
        return _people(_events(session, since, run.queued_at, _AGAIN, run.dag_id), " (cleared)")
    requeued = _events(session, since, run.queued_at, _QUEUED, run.dag_id)
    made = _events(session, since, run.queued_at, _MADE, run.dag_id)
    if not any(_named(event) == run.run_id for event in made):
        # it has taken longer than anybody could know
        earlier = _events(session, None, since, _MADE, run.dag_id, naming=run.run_id)
        made += [event for event in earlier if _named(event) == run.run_id]
    web = [event for event in made if event.event != _COMMAND and _may_be_of(event, run)]
    commands = [event for event in made if event.event == _COMMAND]
    return list(dict.fromkeys([*_people([*requeued, *web]), *_people(commands, " (command line)")]))


def _events(
    session: Any, since: datetime | None, until: datetime, kinds: Iterable[str], dag_id: str, naming: str = ""
) -> list[Any]:
    """Events that may be of a DAG, the latest first.

    Args:
        naming: a run that an event must mention; '' for any.
    """
    from airflow.models.log import Log
    from sqlalchemy import or_

    found = session.query(Log).filter(Log.dttm <= until, Log.event.in_(sorted(kinds)))
    found = found.filter(or_(Log.dag_id == dag_id, Log.dag_id.is_(None), Log.event.in_(sorted(_OF_ANY))))
    if since is not None:
        found = found.filter(Log.dttm >= since)
    if naming:
        found = found.filter(or_(Log.run_id == naming, Log.extra.contains(naming, autoescape=True)))
    return list(found.order_by(Log.id.desc()))


def _may_be_of(event: Any, run: Any) -> bool:
    """Whether an event may be what has made this run."""
    # whoever only looks at the form sends no conf; a run of the form that has one was sent one
    if event.event == _FORM and run.conf and "conf" not in _said(event, {"conf": ""}):
        return False
    named = _named(event)
    return not named or named == run.run_id


def _named(event: Any) -> Any:
    """The run that an event names; None or '' where it names none.

    The form reads the run's id where the event has it from, too. The API reads it in the body, which is among what the
    event keeps, and not in the address, where the event has it from.
    """
    return event.run_id if event.event in (_FORM, _COMMAND) else _said(event, {}).get("dag_run_id")


def _said(event: Any, otherwise: dict[str, Any]) -> dict[str, Any]:
    """What an event keeps of its request.

    Args:
        otherwise: what is taken for it where it can't be read.
    """
    try:
        said = json.loads(event.extra or "{}")
    except ValueError:
        return otherwise
    return said if isinstance(said, dict) else otherwise


def _people(events: Iterable[Any], how: str = "") -> list[str]:
    return list(dict.fromkeys(f"{event.owner}{how}" for event in events if event.owner))


def _try(session: Any, task: Any, number: int) -> Any:
    """A former try of a task; None where Airflow has not kept it."""
    from airflow.models.taskinstancehistory import TaskInstanceHistory as Tries

    found = session.query(Tries).filter_by(
        dag_id=task.dag_id, run_id=task.run_id, task_id=task.task_id, map_index=task.map_index, try_number=number
    )
    return found.order_by(Tries.id).first()
