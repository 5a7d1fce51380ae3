"""Determines who requested a task, from Airflow's own event log and never from a run's configuration.

Airflow (2.10.5) writes an event to its table `log`, with the logged-in user as `owner`, before it handles a request
(`airflow/www/decorators.py`, `action_logging`). When a request creates or clears a DAG run, the run
stores the time at which it was queued (`queued_at`; `models/dagrun.py`, `set_state`). So the event for a run precedes
that time by no more than a request's maximum duration. The event names the run only if the caller chose the run's id,
and the caller controls all other fields of the event except the owner. Therefore, an event is ruled out only if Airflow
itself would have applied it to another run or DAG (`busco.orchestration.guard` rejects requests with two ids). If
events of several users remain, all of these users are named: a user can hide among others, but can never make it appear
that only somebody else made the request.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

# Events that create a run: from the UI's form, the REST API (`ui.` if a browser called it), and the command line.
_FORM = "trigger"
_API = frozenset({"api.post_dag_run", "ui.post_dag_run"})
_COMMAND = "cli_dag_trigger"
_MADE = frozenset({_FORM, *_API, _COMMAND})
# Events that rerun tasks of one or many runs: from the REST API, a DAG's pages, the command line, and list views.
_AGAIN = frozenset(
    {f"{way}.{name}" for way in ("api", "ui") for name in (
        "clear_dag_run", "post_clear_task_instances", "update_dag_run_state", "post_set_task_instances_state",
        "patch_task_instance", "patch_mapped_task_instance",
    )}
    | {"clear", "dagrun_clear", "dagrun_queued", "failed", "success", "cli_task_clear"}
    | {f"action_{name}" for name in ("clear", "clear_downstream", "set_queued", "set_running", "set_retry")}
    | {"dagrun.edit", "taskinstance.edit"}
)  # fmt: skip
# The subset of these events that may affect a DAG other than the one that they name: list views identify the DAG by a
# row's key, regardless of other parameters, and the command line accepts a pattern.
_OF_ANY = frozenset(name for name in _AGAIN if name.startswith(("action_", "cli_")) or name.endswith(".edit"))
# Events that queue a run without clearing anything.
_QUEUED = frozenset({"dagrun_queued", "action_set_queued", "api.update_dag_run_state", "ui.update_dag_run_state"})
# The longest time by which an event can precede its effect: the webserver's limit for a request (Airflow's
# `web_server_worker_timeout`), which also leaves the command line enough time to start Airflow.
_SPAN = timedelta(seconds=120)


def who_is(context: Any) -> str:
    """Returns who requested a task of a DAG run, in the form in which it is stored in releases.

    This is the user who created the run, or who has since cleared the task: `ana`, `ana (cleared)`, or `ana or bob` if
    it could have been either of them; for `airflow dags trigger`, it is `root (command line)`, with the operating
    system's user name. If the event log names no user (a schedule or another DAG created the run, or the log was
    cleaned), this is the run itself: `airflow:<dag_id>/<run_id>`.

    Args:
        context: the task's Airflow context.
    """
    from airflow.utils.session import create_session

    run, task = context["dag_run"], context["task_instance"]
    with create_session() as session:
        names = _names(session, run, task, context["task"].retries)
    return " or ".join(names) or f"airflow:{run.dag_id}/{run.run_id}"


def _names(session: Any, run: Any, task: Any, retries: int) -> list[str]:
    """Returns the distinct names of the users who may have requested the task, latest first."""
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
        # the task may have been queued long after it was cleared: for example, because the DAG was paused, or because
        # the run was not queued until somebody else requested it
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
        # the request may have taken longer than `_SPAN`
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
        naming: the id of a run that the events must mention; '' for events of any run.
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
    # merely opening the form sends no conf, so an event without a conf can't have created a run that has one
    if event.event == _FORM and run.conf and "conf" not in _parameters(event, {"conf": ""}):
        return False
    named = _named(event)
    return not named or named == run.run_id


def _named(event: Any) -> Any:
    """Returns the id of the run that an event names; None or '' if it names none.

    The form reads the run's id from the request parameter that the event also stores as `run_id`. The API reads the
    run's id from the body, which the event stores in `extra`, whereas the event's `run_id` comes from the URL.
    """
    return event.run_id if event.event in (_FORM, _COMMAND) else _parameters(event, {}).get("dag_run_id")


def _parameters(event: Any, otherwise: dict[str, Any]) -> dict[str, Any]:
    """Returns the request parameters that an event stores.

    Args:
        otherwise: the value to return if the parameters can't be parsed.
    """
    try:
        stored = json.loads(event.extra or "{}")
    except ValueError:
        return otherwise
    return stored if isinstance(stored, dict) else otherwise


def _people(events: Iterable[Any], how: str = "") -> list[str]:
    return list(dict.fromkeys(f"{event.owner}{how}" for event in events if event.owner))


def _try(session: Any, task: Any, number: int) -> Any:
    """Returns an earlier try of a task; None if Airflow has no record of that try."""
    from airflow.models.taskinstancehistory import TaskInstanceHistory as Tries

    found = session.query(Tries).filter_by(
        dag_id=task.dag_id, run_id=task.run_id, task_id=task.task_id, map_index=task.map_index, try_number=number
    )
    return found.order_by(Tries.id).first()
