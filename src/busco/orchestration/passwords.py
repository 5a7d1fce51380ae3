"""Logins by password, by the login page and by the REST API: Airflow's own check, and a limit of failed ones."""

from __future__ import annotations

from typing import Any

from airflow.providers.fab.auth_manager.security_manager.override import FabAirflowSecurityManagerOverride
from flask import request
from werkzeug.exceptions import TooManyRequests

from busco.orchestration.guard import FailedLogins

_failed = FailedLogins()


class PasswordSecurityManager(FabAirflowSecurityManagerOverride):
    """Airflow's own security manager, which tries no password after too many wrong ones (webserver_config.py).

    The login page has a limit of Flask-AppBuilder's own besides, of one address whoever is tried (`AUTH_RATE_LIMIT`).
    """

    def auth_user_db(self, username: str | None, password: str | None) -> Any:
        """The user whose name, or e-mail address, and password these are; None where they are wrong.

        Failed logins count for the user whom Airflow finds, however the name is written.

        Raises:
            TooManyRequests: too many have failed.
        """
        find: Any = self.find_user
        user = find(username=username) or find(email=username)
        tried = request.remote_addr or "", str(user.username if user else username)
        if _failed.too_many(*tried):
            raise TooManyRequests("too many failed logins; try again in a minute", retry_after=60)
        found = super().auth_user_db(username, password)  # type: ignore[no-untyped-call]
        if found is None:
            _failed.count(*tried)
        return found
