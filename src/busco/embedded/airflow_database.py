"""Makes Airflow's tables, roles and the user admin, in one process: each `airflow` command alone takes seconds."""

from __future__ import annotations


def main() -> None:
    """Safe to run again: what is there stays."""
    from airflow.providers.fab.auth_manager.cli_commands.utils import get_application_builder
    from airflow.utils import db

    db.upgradedb()
    with get_application_builder() as builder:
        manager = builder.sm
        manager.sync_roles()
        if manager.find_user("admin") is None:
            # the embedded platform listens on this machine only
            made = manager.add_user(
                "admin",
                "Admin",
                "User",
                "admin@example.com",
                manager.find_role("Admin"),
                password="admin",  # noqa: S106
            )
            if not made:
                raise SystemExit("the user admin could not be made")


if __name__ == "__main__":
    main()
