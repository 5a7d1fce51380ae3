"""Determines who requested a task, from Airflow's own event log and never from a run's configuration.

Airflow (2.10.5) writes an event to its table `log`, with the logged-in user as `owner`, before it handles a request
(`airflow/www/decorators.py`, `action_logging`). The DAG run that the request creates or clears records when it was
queued (`queued_at`; `models/dagrun.py`, `set_state`). So a run's event was written before that time, by no more
than the time that a request can take. It names its run only if the caller chose the run's id, and the caller controls
all of its other fields except the owner. Therefore, an event is ruled out only if Airflow itself would have applied it
to another run or DAG (`busco.orchestration.guard` rejects requests with two ids). If events of several users remain,
all of them are named: a user can hide among others, but can never make somebody else appear to be the only one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

# Events that create a run: the UI's form, and the REST API, called by a browser (ui) or not.
_FORM = "trigger"
_API = frozenset({"api.post_dag_run", "ui.post_dag_run"})
_COMMAND = "cli_dag_trigger"
_MADE = frozenset({_FORM, *_API, _COMMAND})
# Events that rerun tasks, of one run or of many: REST API, a DAG's pages, lists.
_AGAIN = frozenset(
    {f"{way}.{name}" for way in ("api", "ui") for name in (
        "clear_dag_run", "post_clear_task_instances", "update_dag_run_state", "post_set_task_instances_state",
        "patch_task_instance", "patch_mapped_task_instance",
    )}
    | {"clear", "dagrun_clear", "dagrun_queued", "failed", "success", "cli_task_clear"}
    | {f"action_{name}" for name in ("clear", "clear_downstream", "set_queued", "set_running", "set_retry")}
    | {"dagrun.edit", "taskinstance.edit"}
)  # fmt: skip
# Those that may affect a DAG other than the event's: lists identify it by a row's key, regardless of other parameters,
# and the command line accepts a pattern.
_OF_ANY = frozenset(name for name in _AGAIN if name.startswith(("action_", "cli_")) or name.endswith(".edit"))
# Those that queue a run without clearing anything.
_QUEUED = frozenset({"dagrun_queued", "action_set_queued", "api.update_dag_run_state", "ui.update_dag_run_state"})
# How long before its effect an event may have been written: the webserver's limit for a request (Airflow's
# `web_server_worker_timeout`), which also leaves the command line enough time to start Airflow.
_SPAN = timedelta(seconds=120)


def who_is(context: Any) -> str:
    """Returns who requested a task of a DAG run, in the form that releases record.

    This is the user who created the run, or who cleared the task since: `ana`, `ana (cleared)`, or `ana or bob` if it
    could have been either; `root (command line)` for `airflow dags trigger`, with the operating system's user name. If
    Airflow has no user (a schedule, another DAG, a cleaned event log), it is the run: `airflow:<dag_id>/<run_id>`.

    Args:
        context: the task's Airflow context.
    """
    from airflow.utils.session import create_session

    run, task = context["dag_run"], context["task_instance"]
    with create_session() as session:
        names = _names(session, run, task, context["task"].retries)
    return " or ".join(names) or f"airflow:{run.dag_id}/{run.run_id}"


def _names(session: Any, run: Any, task: Any, retries: int) -> list[str]:
    """Returns the distinct names, latest first."""
    cleared = task.max_tries > retries and task.try_number > 1
    if cleared:
        before, after = (
            _try(session, task, number) for number in (task.max_tries - retries, task.max_tries - retries + 1)
        )
        began = before.start_date if before else None
        # a run that was still active when its task was cleared is not queued again: the scheduler just queues the task
        queued = run.queued_at if run.queued_at and began and run.queued_at >= began else (after or task).queued_dttm
        if queued is None:
            return []
        # the scheduler may have waited, for a paused DAG for example, or for somebody else to queue the run
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
        # the request took longer than `_SPAN`
        earlier = _events(session, None, since, _MADE, run.dag_id, naming=run.run_id)
        made += [event for event in earlier if _named(event) == run.run_id]
    web = [event for event in made if event.event != _COMMAND and _may_be_of(event, run)]
    commands = [event for event in made if event.event == _COMMAND]
    return list(dict.fromkeys([*_people([*requeued, *web]), *_people(commands, " (command line)")]))


def _events(
    session: Any, since: datetime | None, until: datetime, kinds: Iterable[str], dag_id: str, naming: str = ""
) -> list[Any]:
    """Returns the events that may concern a DAG, latest first.

    Args:
        naming: the id of a run that an event must mention; '' for any.
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
    """Whether an event may have created this run."""
    # opening the form sends no conf, so such an event cannot have created a run that has one
    if event.event == _FORM and run.conf and "conf" not in _parameters(event, {"conf": ""}):
        return False
    named = _named(event)
    return not named or named == run.run_id


def _named(event: Any) -> Any:
    """Returns the id of the run that an event names; None or '' if it names none.

    The form reads the run's id from the same parameter as the event's `run_id`. The API reads it from the body, which
    the event stores in `extra`, whereas the event's `run_id` comes from the URL.
    """
    return event.run_id if event.event in (_FORM, _COMMAND) else _parameters(event, {}).get("dag_run_id")


def _parameters(event: Any, otherwise: dict[str, Any]) -> dict[str, Any]:
    """Returns the request parameters that an event stores.

    Args:
        otherwise: returned if they can't be parsed.
    """
    try:
        stored = json.loads(event.extra or "{}")
    except ValueError:
        return otherwise
    return stored if isinstance(stored, dict) else otherwise


def _people(events: Iterable[Any], how: str = "") -> list[str]:
    return list(dict.fromkeys(f"{event.owner}{how}" for event in events if event.owner))


def _try(session: Any, task: Any, number: int) -> Any:
    """Returns an earlier try of a task; None if Airflow has no record of it."""
    from airflow.models.taskinstancehistory import TaskInstanceHistory as Tries

    found = session.query(Tries).filter_by(
        dag_id=task.dag_id, run_id=task.run_id, task_id=task.task_id, map_index=task.map_index, try_number=number
    )
    return found.order_by(Tries.id).first()
