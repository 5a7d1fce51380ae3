"""Airflow's webserver with the platform's roles, the `operations` DAG, and test endpoints in place of a scheduler.

usage: on_call_web.py <port>. It uses SQLite. Each user's password is the user name. URLs below /lab need no login.
"""

from __future__ import annotations

import json
import os
import sys
from datetime import timedelta
from typing import Any

DAG = "operations"
TASK = "rollback"
USERS = {"ana": "OnCall", "bob": "OnCall", "boss": "Admin", "viewer": "Viewer", "guessed": "Viewer", "spread": "Viewer"}


def main() -> None:
    from airflow.models import DagBag
    from airflow.utils import db
    from airflow.www.app import create_app
    from werkzeug.serving import make_server

    db.initdb()
    bag = DagBag(read_dags_from_db=False)
    assert not bag.import_errors, bag.import_errors
    bag.sync_to_db()
    app = create_app()
    with app.app_context():
        _users(app.appbuilder.sm)
    for name in ("who", "ended", "taken", "counts", "aged", "earlier", "made", "command"):
        app.add_url_rule(f"/lab/{name}", f"lab_{name}", globals()[f"_{name}"])
    make_server("127.0.0.1", int(sys.argv[1]), app, threaded=True).serve_forever()


def _users(manager: Any) -> None:
    from busco.orchestration import access

    # a database of an earlier version: OnCall had the permissions of the stock role User, and more were added by hand
    manager.sync_roles()
    role = manager.add_role(access.ON_CALL)
    for permission in manager.find_role("User").permissions:
        manager.add_permission_to_role(role, permission)
    for action, resource in (("can_create", "Connections"), ("can_edit", "DAG:operations")):
        manager.add_permission_to_role(role, manager.create_permission(action, resource))
    access.keep_roles(manager)
    for name, given in USERS.items():
        manager.add_user(name, name, name, f"{name}@example.com", manager.find_role(given), password=name)


def _run(session: Any) -> tuple[Any, Any]:
    from airflow.models.dagrun import DagRun
    from flask import request

    run = session.query(DagRun).filter_by(dag_id=DAG, run_id=request.args["run"]).one()
    return run, next(task for task in run.get_task_instances(session=session) if task.task_id == TASK)


def _who() -> str:
    """Returns the user that the `rollback` task of a run would name."""
    from airflow.utils.session import create_session

    from busco.orchestration import who

    with create_session() as session:
        run, task = _run(session)
        definition = type("Task", (), {"retries": 2})
        return who.who_is({"dag_run": run, "task_instance": task, "task": definition})


def _ended() -> str:
    """Marks the task as ended, and the run too unless `goes_on` is given."""
    from airflow.utils import timezone
    from airflow.utils.session import create_session
    from flask import request

    with create_session() as session:
        run, task = _run(session)
        now = timezone.utcnow()
        task.state, task.try_number, task.start_date, task.end_date, task.queued_dttm = "success", 1, now, now, now
        run.state = "running" if "goes_on" in request.args else "success"
        return ""


def _taken() -> str:
    """Queues the task's next try, as the scheduler does, if it was cleared. Returns whether it was."""
    from airflow.utils import timezone
    from airflow.utils.session import create_session

    with create_session() as session:
        _, task = _run(session)
        if task.state is not None:
            return "no"
        task.state, task.try_number, task.queued_dttm = "queued", task.try_number + 1, timezone.utcnow()
        return "yes"


def _counts() -> str:
    """Returns the number of records of each kind."""
    from airflow.models import Connection, DagModel, DagRun, Pool, TaskInstance, Variable
    from airflow.models.dataset import DatasetEvent
    from airflow.utils.session import create_session

    kinds = (DagModel, DagRun, TaskInstance, Connection, Pool, Variable, DatasetEvent)
    with create_session() as session:
        return json.dumps({kind.__name__: session.query(kind).count() for kind in kinds})


def _aged() -> str:
    """Makes all records one hour older."""
    from airflow.models import DagRun, Log, TaskInstance
    from airflow.utils.session import create_session

    moments = ((Log, ("dttm",)), (DagRun, ("queued_at",)), (TaskInstance, ("start_date", "end_date", "queued_dttm")))
    with create_session() as session:
        for kind, columns in moments:
            for row in session.query(kind):
                for column in columns:
                    if getattr(row, column) is not None:
                        setattr(row, column, getattr(row, column) - timedelta(hours=1))
    return ""


def _earlier() -> str:
    """Moves a user's events some seconds into the past."""
    from airflow.models import Log
    from airflow.utils.session import create_session
    from flask import request

    with create_session() as session:
        for event in session.query(Log).filter_by(owner=request.args["owner"]):
            event.dttm -= timedelta(seconds=int(request.args["seconds"]))
    return ""


def _made() -> str:
    """Creates a run that no user has triggered, but a schedule or another DAG. Returns its id."""
    from airflow.models import DagBag
    from airflow.utils import timezone
    from airflow.utils.types import DagRunType
    from flask import request

    now = timezone.utcnow()
    run = DagBag(read_dags_from_db=True).get_dag(DAG).create_dagrun(
        run_type=DagRunType(request.args["kind"]), state="queued", execution_date=now, data_interval=(now, now),
        conf={"who": "ana"},
    )  # fmt: skip
    return str(run.run_id)


def _command() -> str:
    """Runs `airflow dags trigger` as a user who claims to be ana."""
    from airflow.cli.cli_parser import get_parser
    from flask import request

    os.environ["LOGNAME"] = "ana"
    parsed = get_parser().parse_args(["dags", "trigger", DAG, "--run-id", request.args["run"]])
    parsed.func(parsed)
    return ""


if __name__ == "__main__":
    main()
