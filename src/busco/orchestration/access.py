"""Airflow's roles and its first admin: made at set-up, kept at each further one. Stock roles stay as they are."""

from __future__ import annotations

import os
from typing import Any

ON_CALL = "OnCall"
# What OnCall may beside what a stock Viewer may: pause, trigger, clear and mark (Airflow 2.10.5,
# `airflow/www/auth.py` and `api_connexion/security.py`: which method needs what). Neither delete what has happened, nor
# report a dataset as changed.
ON_CALL_MAY = frozenset(
    {
        ("can_edit", "DAGs"),
        ("can_create", "DAG Runs"),
        ("can_edit", "DAG Runs"),
        ("can_edit", "Task Instances"),
    }
)


def set_up(username: str, password: str, email: str = "admin@example.com") -> None:
    """Brings Airflow's tables up to date, keeps the roles, and makes the admin where there is none of that name.

    Safe to run again: an admin that is there keeps its password.

    Raises:
        SystemExit: the admin could not be made.
    """
    from airflow.providers.fab.auth_manager.cli_commands.utils import get_application_builder
    from airflow.utils import db

    db.upgradedb()
    with get_application_builder() as builder:
        manager = builder.sm
        keep_roles(manager)
        if username and password and manager.find_user(username) is None:
            made = manager.add_user(username, "Admin", "User", email, manager.find_role("Admin"), password=password)
            if not made:
                raise SystemExit(f"the user {username} could not be made")


def keep_roles(manager: Any) -> None:
    """The stock roles as Airflow has them, and OnCall, which may look at everything as a Viewer does, and pause,
    trigger, clear and mark all DAGs, `operations` too. It loses whatever else it was given, except by a DAG file
    (`access_control`), which gives permissions on that DAG alone.

    Args:
        manager: Flask-AppBuilder's security manager.
    """
    manager.sync_roles()
    wanted = {*ON_CALL_MAY, *manager.VIEWER_PERMISSIONS}
    role = manager.find_role(ON_CALL) or manager.add_role(ON_CALL)
    for action, resource in sorted(wanted):
        manager.add_permission_to_role(role, manager.create_permission(action, resource))
    for permission in list(role.permissions):
        resource = permission.resource.name
        if (permission.action.name, resource) not in wanted and not resource.startswith(("DAG:", "DAG Run:")):
            manager.remove_permission_from_role(role, permission)


def main() -> None:
    """Sets up by AIRFLOW_ADMIN_USERNAME, _PASSWORD and _EMAIL.

    Without a password no admin is made, nor where people log in by a provider (AIRFLOW_LOGIN=oauth).
    """
    said = {name: os.environ.get(f"AIRFLOW_ADMIN_{name}", "") for name in ("USERNAME", "PASSWORD", "EMAIL")}
    if os.environ.get("AIRFLOW_LOGIN") == "oauth":
        said["PASSWORD"] = ""
    set_up(said["USERNAME"] or "admin", said["PASSWORD"], said["EMAIL"] or "admin@example.com")


if __name__ == "__main__":
    main()
