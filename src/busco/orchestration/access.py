"""Sets up logins to Airflow at every start: the login method, the first admin, and the roles."""

from __future__ import annotations

import os
from typing import Any, Literal

from busco.errors import BuscoError
from busco.settings import get_settings

ON_CALL = "OnCall"
EVENTS_MENU = "New objects"
SITE_MENU = "Data catalog"
# The permissions that OnCall has in addition to those of the stock Viewer role: to pause and trigger DAGs, to clear
# tasks, to mark tasks and runs as success or failed, and to see the page about new objects in the menu. In Airflow
# 2.10.5, `airflow/www/auth.py` and `api_connexion/security.py` show which permissions each method requires. OnCall can
# neither delete history nor report a dataset as changed.
ON_CALL_MAY = frozenset(
    {
        ("can_edit", "DAGs"),
        ("can_create", "DAG Runs"),
        ("can_edit", "DAG Runs"),
        ("can_edit", "Task Instances"),
        ("menu_access", EVENTS_MENU),
        ("menu_access", SITE_MENU),
    }
)
# the default password of a development platform, and those that an attacker would try first
KNOWN_PASSWORDS = frozenset({"admin", "airflow", "password", "busco"})


def login_kind() -> Literal["password", "oauth"]:
    """Returns the login method: AIRFLOW_LOGIN, or `password` if it is not set.

    Raises:
        BuscoError: AIRFLOW_LOGIN is neither `password` nor `oauth`; a misspelt value must not fall back to passwords.
    """
    kind = os.environ.get("AIRFLOW_LOGIN") or "password"
    if kind not in ("password", "oauth"):
        raise BuscoError(f"AIRFLOW_LOGIN is {kind!r}", "set it to password or oauth")
    return "oauth" if kind == "oauth" else "password"


def admin() -> tuple[str, str]:
    """Returns the first admin's name and password from AIRFLOW_ADMIN_USERNAME and AIRFLOW_ADMIN_PASSWORD.

    The password is '' if none is set.
    """
    return os.environ.get("AIRFLOW_ADMIN_USERNAME") or "admin", os.environ.get("AIRFLOW_ADMIN_PASSWORD", "")


def development_admin() -> tuple[str, str]:
    """Returns the admin's name and password for a platform that only listens on 127.0.0.1.

    Both are `admin`, unless the environment overrides them.
    """
    name, password = admin()
    return name, password or "admin"


def refuse_known(password: str, what: str = "AIRFLOW_ADMIN_PASSWORD") -> None:
    """Refuses a well-known password outside of development.

    Raises:
        BuscoError: the password is one of KNOWN_PASSWORDS, and BUSCO_PLATFORM is `aws`.
    """
    if get_settings().platform == "aws" and password in KNOWN_PASSWORDS:
        raise BuscoError(
            f"{what} is a well-known password",
            "on AWS, the platform refuses to start with it; generate another one: openssl rand -hex 24",
        )


def set_up(username: str, password: str, email: str = "admin@example.com") -> None:
    """Migrates Airflow's database, syncs the roles, and creates or updates the admin.

    It is safe to run again: the admin is only created if there is no user named `username`. If that user's
    password differs, the password is changed, which ends the user's sessions. If `password` is empty, no user is
    created or changed.

    Raises:
        BuscoError: on AWS, the admin has a well-known password.
        SystemExit: the admin could not be created.
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
                raise SystemExit(f"the user {username} could not be created")
        elif user is not None and password:
            if not check_password_hash(user.password or "", password):
                manager.reset_password(user.id, password)
        elif user is not None and login_kind() == "password":
            for known in KNOWN_PASSWORDS:
                if check_password_hash(user.password or "", known):
                    refuse_known(known, f"the password of Airflow's user {username}")


def keep_roles(manager: Any) -> None:
    """Resets the stock roles to Airflow's definitions and the menu item of the site, and creates or resets OnCall.

    OnCall can view everything that a Viewer can. It can also pause and trigger all DAGs, including `operations`, clear
    their tasks, and mark tasks and runs as success or failed. Any other permission of the role is removed, except
    permissions on a single DAG, which that DAG's file grants (`access_control`).

    Args:
        manager: Flask-AppBuilder's security manager.
    """
    manager.sync_roles()
    # everybody who can read a DAG can read the site about its tables
    site = manager.create_permission("menu_access", SITE_MENU)
    for name in ("Viewer", "User", "Op"):
        manager.add_permission_to_role(manager.find_role(name), site)
    wanted = {*ON_CALL_MAY, *manager.VIEWER_PERMISSIONS}
    role = manager.find_role(ON_CALL) or manager.add_role(ON_CALL)
    for action, resource in sorted(wanted):
        manager.add_permission_to_role(role, manager.create_permission(action, resource))
    for permission in list(role.permissions):
        resource = permission.resource.name
        if (permission.action.name, resource) not in wanted and not resource.startswith(("DAG:", "DAG Run:")):
            manager.remove_permission_from_role(role, permission)


def main() -> None:
    """Sets up logins to Airflow, with the admin from AIRFLOW_ADMIN_USERNAME, _PASSWORD and _EMAIL.

    No admin is created without a password, or if users log in through an identity provider (AIRFLOW_LOGIN=oauth).
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
