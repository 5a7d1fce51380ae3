"""Airflow's webserver alone, in a process of its own: SQLite, the DAG files as serialized, runs in given states.

usage: web.py <port> <runs as JSON: run id → task id → [state, try number]>
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

# name: the role of the user of that name, whose password is the name
USERS = {"admin": "Admin", "viewer": "Viewer", "stranger": "Stranger"}


def main() -> None:
    from airflow.utils import db
    from airflow.www.app import create_app
    from werkzeug.serving import make_server

    db.initdb()
    app = create_app()
    with app.app_context():
        _users(app.appbuilder.sm)
        _runs(json.loads(sys.argv[2]))
    make_server("127.0.0.1", int(sys.argv[1]), app, threaded=True).serve_forever()


def _users(manager: Any) -> None:
    manager.sync_roles()
    website = manager.create_permission("can_read", "Website")
    manager.add_permission_to_role(manager.add_role("Stranger"), website)
    for name, role in USERS.items():
        manager.add_user(name, name, name, f"{name}@example.com", manager.find_role(role), password=name)


def _runs(wanted: dict[str, dict[str, list[Any]]]) -> None:
    from airflow.models import DagBag
    from airflow.utils.session import create_session
    from airflow.utils.state import DagRunState
    from airflow.utils.types import DagRunType

    bag = DagBag(read_dags_from_db=False)
    assert not bag.import_errors, bag.import_errors
    bag.sync_to_db()
    began = datetime(2026, 1, 1, tzinfo=UTC)
    for number, (run_id, tasks) in enumerate(wanted.items()):
        moment = began + timedelta(hours=number)
        run = bag.get_dag("lakehouse").create_dagrun(
            run_id=run_id, run_type=DagRunType.MANUAL, state=DagRunState.RUNNING, execution_date=moment,
            data_interval=(moment, moment),
        )  # fmt: skip
        with create_session() as session:
            for instance in run.get_task_instances(session=session):
                state, instance.try_number = tasks.get(instance.task_id, [None, 0])
                instance.set_state(state, session=session)


if __name__ == "__main__":
    main()
