"""Basic authentication for Airflow's REST API (`[api] auth_backends`), if users log in with passwords.

Airflow's documentation, "API Authentication", section "Roll your own API authentication", describes what a backend must
provide. `busco.orchestration.passwords` limits failed logins.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from airflow.providers.fab.auth_manager.api.auth.backend.basic_auth import auth_current_user
from flask import Flask, Response

from busco.orchestration.access import login_kind

CLIENT_AUTH: Any = None


def init_app(app: Flask) -> None:
    """Does nothing: this backend keeps no state in the app."""


def requires_authentication(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates an endpoint so that it is only called if the username and password are correct.

    Otherwise, the response is 401, or 429 after too many failed attempts. If users log in through an identity provider
    (AIRFLOW_LOGIN=oauth), nobody has a password, and the response is always 401.
    """

    @wraps(function)
    def decorated(*args: Any, **kwargs: Any) -> Any:
        if login_kind() == "oauth":
            return Response("Unauthorized", 401)
        if auth_current_user() is None:
            return Response("Unauthorized", 401, {"WWW-Authenticate": "Basic"})
        return function(*args, **kwargs)

    return decorated
