"""Who may log in to Airflow: how, the first admin, and the roles. Set up at each start; stock roles stay so."""

from __future__ import annotations

import os
from typing import Any, Literal

from busco.errors import BuscoError
from busco.settings import get_settings

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
# the default of a development platform, and what else is tried first
KNOWN_PASSWORDS = frozenset({"admin", "airflow", "password", "busco"})


def login_kind() -> Literal["password", "oauth"]:
    """How people log in: AIRFLOW_LOGIN, `password` where it is not set.

    Raises:
        BuscoError: it is any other word; a misspelt one never means passwords.
    """
    kind = os.environ.get("AIRFLOW_LOGIN") or "password"
    if kind not in ("password", "oauth"):
        raise BuscoError(f"AIRFLOW_LOGIN is {kind!r}", "set it to password or oauth")
    return "oauth" if kind == "oauth" else "password"


def admin() -> tuple[str, str]:
    """Name and password of the first admin, by AIRFLOW_ADMIN_USERNAME and AIRFLOW_ADMIN_PASSWORD; the password is ''
    where none is set."""
    return os.environ.get("AIRFLOW_ADMIN_USERNAME") or "admin", os.environ.get("AIRFLOW_ADMIN_PASSWORD", "")


def development_admin() -> tuple[str, str]:
    """The admin of a platform that listens on 127.0.0.1 only: admin / admin unless the environment says otherwise."""
    name, password = admin()
    return name, password or "admin"


def refuse_known(password: str, what: str = "AIRFLOW_ADMIN_PASSWORD") -> None:
    """Refuses a password that everybody knows, where the platform is not a development's.

    Raises:
        BuscoError: it is one of KNOWN_PASSWORDS, and BUSCO_PLATFORM is `aws`.
    """
    if get_settings().platform == "aws" and password in KNOWN_PASSWORDS:
        raise BuscoError(
            f"{what} is one that everybody knows",
            "BUSCO_PLATFORM=aws does not start with it; set another one: openssl rand -hex 24",
        )


def set_up(username: str, password: str, email: str = "admin@example.com") -> None:
    """Brings Airflow's tables up to date, keeps the roles, and keeps the admin with this password.

    Safe to run again: the admin is made where there is none of that name, and a password that differs is changed, which
    ends that user's sessions. Without a password no user is touched.

    Raises:
        BuscoError: on AWS, the admin of that name has a password that everybody knows.
        SystemExit: the admin could not be made.
    """
    from airflow.providers.fab.auth_manager.cli_commands.utils import get_application_builder
    from airflow.utils import db
    from werkzeug.security import check_password_hash

    refuse_known(password)
    db.upgradedb()
    with get_application_builder() as builder:
        manager = builder.sm
        keep_roles(manager)
        user = manager.find_user(username)
        if user is None and password:
            if not manager.add_user(username, "Admin", "User", email, manager.find_role("Admin"), password=password):
                raise SystemExit(f"the user {username} could not be made")
        elif user is not None and password:
            if not check_password_hash(user.password or "", password):
                manager.reset_password(user.id, password)
        elif user is not None and login_kind() == "password":
            for known in KNOWN_PASSWORDS:
                if check_password_hash(user.password or "", known):
                    refuse_known(known, f"the password of Airflow's user {username}")


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
    try:
        name, password = admin()
        if login_kind() == "oauth":
            password = ""
        set_up(name, password, os.environ.get("AIRFLOW_ADMIN_EMAIL") or "admin@example.com")
    except BuscoError as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
