"""Airflow's REST API by name and password (`[api] auth_backends`), where people have passwords.

Airflow's documentation, "API Authentication", section "Roll your own API authentication", says what a backend has.
`busco.orchestration.passwords` limits failed logins.
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
    """Nothing is kept in the app."""


def requires_authentication(function: Callable[..., Any]) -> Callable[..., Any]:
    """Calls the function for whoever has a right name and password; else 401, and 429 after too many wrong ones.

    Where people log in by a provider (AIRFLOW_LOGIN=oauth) nobody has a password.
    """

    @wraps(function)
    def decorated(*args: Any, **kwargs: Any) -> Any:
        if login_kind() == "oauth":
            return Response("Unauthorized", 401)
        if auth_current_user() is None:
            return Response("Unauthorized", 401, {"WWW-Authenticate": "Basic"})
        return function(*args, **kwargs)

    return decorated
