"""Airflow's REST API by name and password (`[api] auth_backends`): Airflow's own check, and a limit of failed ones.

Airflow's documentation, "API Authentication", section "Roll your own API authentication", says what a backend has. The
login page has a limit of Flask-AppBuilder's own (`AUTH_RATE_LIMIT`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from airflow.providers.fab.auth_manager.api.auth.backend.basic_auth import auth_current_user
from flask import Flask, Response, request
from werkzeug.exceptions import TooManyRequests

from busco.orchestration.access import login_kind
from busco.orchestration.guard import FailedLogins

CLIENT_AUTH: Any = None
_failed = FailedLogins()


def init_app(app: Flask) -> None:
    """Nothing is kept in the app."""


def requires_authentication(function: Callable[..., Any]) -> Callable[..., Any]:
    """Calls the function for whoever has a right name and password; else 401, and 429 after too many wrong ones.

    Where people log in by a provider (AIRFLOW_LOGIN=oauth) nobody has a password.
    """

    @wraps(function)
    def decorated(*args: Any, **kwargs: Any) -> Any:
        if login_kind() == "oauth":
            return Response("Unauthorized", 401)
        said = request.authorization
        if said is None or not said.username:
            return Response("Unauthorized", 401, {"WWW-Authenticate": "Basic"})
        tried = request.remote_addr or "", said.username
        if _failed.too_many(*tried):
            raise TooManyRequests("too many failed logins; try again in a minute", retry_after=60)
        if auth_current_user() is None:
            _failed.count(*tried)
            return Response("Unauthorized", 401, {"WWW-Authenticate": "Basic"})
        return function(*args, **kwargs)

    return decorated
