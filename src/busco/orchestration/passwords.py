"""Password logins on the login page and in the REST API: Airflow's own check, plus a limit on failed attempts."""

from __future__ import annotations

from typing import Any

from airflow.providers.fab.auth_manager.security_manager.override import FabAirflowSecurityManagerOverride
from flask import request
from werkzeug.exceptions import TooManyRequests

from busco.orchestration.guard import FailedLogins

_failed = FailedLogins()


class PasswordSecurityManager(FabAirflowSecurityManagerOverride):
    """Airflow's security manager, which stops checking passwords after too many failed logins (webserver_config.py).

    The login page also has Flask-AppBuilder's own limit per client address, regardless of the user (`AUTH_RATE_LIMIT`).
    """

    def auth_user_db(self, username: str | None, password: str | None) -> Any:
        """Returns the user with this name or e-mail address; None if there is no such user or the password is wrong.

        Failed logins are counted for the user that Airflow finds, so all spellings of a user's name count together.

        Raises:
            TooManyRequests: too many logins have failed.
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
