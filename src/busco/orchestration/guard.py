"""What Airflow's webserver and Flower refuse of a request before anybody looks at it.

A web page in a developer's browser may let its own name resolve to 127.0.0.1 (DNS rebinding): such a request has the
page's name as its Host. PostgreSQL takes no NUL in a text, and ids have 250 characters (`ID_LEN` in Airflow 2.10.5):
without a refusal here such a request ends with status 500.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import re2
from airflow.configuration import conf
from flask import Flask, Response, redirect, request, url_for
from limits import parse
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from busco.settings import get_settings

# name or address, [address] for IPv6, and a port (RFC 9110, section 7.2)
_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^\s:/@?#\[\]\\]+))(?::\d{1,5})?", re.IGNORECASE)
_OWN = frozenset({"localhost", "127.0.0.1", "::1"})
_IDS = ("dag_id", "task_id", "run_id", "dag_run_id")
_MOST = 250  # characters of an id
_TRIGGER = re.compile(r"/api/v1/dags/[^/]+/dagRuns/?")
_FAILURES = parse("10 per minute")


def allowed_hosts(*urls: str) -> frozenset[str]:
    """The names by which this machine's browsers and health checks reach a server, that of BUSCO_AIRFLOW_URL, and those
    of BUSCO_WEB_HOSTS; in lower case.

    Args:
        urls: further addresses whose names count.
    """
    settings = get_settings()
    named = {urlsplit(url).hostname or "" for url in (settings.airflow_url, *urls)}
    more = {name.strip().strip("[]").lower() for name in settings.web_hosts.split(",")}
    return frozenset(_OWN | named | more) - {""}


def host_name(header: str) -> str:
    """The name in a Host header, without its port, in lower case; '' where the header is malformed."""
    match = _HOST.fullmatch(header)
    return (match[1] or match[2]).lower() if match else ""


class FailedLogins:
    """Counts failed logins of one user from one address in this process: ten within a minute, then no more are tried.

    Logins that succeed are not counted.
    """

    def __init__(self) -> None:
        self._limiter = MovingWindowRateLimiter(MemoryStorage())

    def too_many(self, address: str, user: str) -> bool:
        return not self._limiter.test(_FAILURES, address, user)

    def count(self, address: str, user: str) -> None:
        self._limiter.hit(_FAILURES, address, user)


def protect(app: Flask) -> None:
    """Makes a webserver refuse unknown hosts (403), and texts that no database takes (400).

    Cosmos's own docs pages, which are served to every user and in Airflow's origin, lead to the platform's.
    """
    hosts = allowed_hosts(conf.get("webserver", "base_url"))

    @app.before_request
    def refuse() -> Any:
        # behind a proxy both the name that it forwards and the one that it asked for
        forwarded = request.environ.get("werkzeug.proxy_fix.orig", {}).get("HTTP_HOST")
        asked = request.environ.get("HTTP_HOST", "")
        for host in {asked, forwarded or asked}:
            if host_name(host) not in hosts:
                what = f"this Airflow is not known as {host[:_MOST]!r}; its names are those of BUSCO_WEB_HOSTS"
                return _refusal(403, "Host refused", what)
        if wrong := _wrong_text():
            return _refusal(400, "Bad Request", wrong)
        if request.path == "/cosmos" or request.path.startswith("/cosmos/"):
            return redirect(url_for("TaskPages.docs"))
        return None


def _refusal(status: int, title: str, detail: str) -> Response:
    if request.path.startswith(("/api/", "/auth/")):
        said = json.dumps({"status": status, "title": title, "detail": detail})
        answer = Response(said, status, content_type="application/problem+json")
    else:
        answer = Response(f"{title}: {detail}\n", status, content_type="text/plain; charset=utf-8")
    answer.headers["X-Content-Type-Options"] = "nosniff"
    return answer


def _wrong_text() -> str:
    """What is wrong with the request's texts; '' where nothing is."""
    try:
        texts = list(_texts())
    except RecursionError:
        return "the body is nested too deeply"
    for name, text in texts:
        if "\0" in text:
            return f"{name} has a NUL character"
        if name in _IDS and len(text) > _MOST:
            return f"{name} has {len(text):,} characters, and none has more than {_MOST}"
    if request.method == "POST" and _TRIGGER.fullmatch(request.path):
        pattern = conf.get("scheduler", "allowed_run_id_pattern")
        for name, text in texts:
            # Airflow (2.10.5) answers with status 500
            if name == "dag_run_id" and text and not re2.match(pattern, text):
                return f"dag_run_id {text!r} does not match {pattern}"
    return ""


def _texts() -> Iterator[tuple[str, str]]:
    """The texts that a request has, with their names."""
    yield "the path", request.path
    yield from request.args.items(multi=True)
    if (said := request.authorization) is not None:
        yield "the user's name", said.username or ""
        yield "the password", said.password or ""
    if not request.content_length and not request.headers.get("Transfer-Encoding"):
        return
    if request.mimetype in ("application/x-www-form-urlencoded", "multipart/form-data"):
        yield from request.form.items(multi=True)
        return
    body = request.get_json(force=True, silent=True)
    waiting: list[tuple[str, Any]] = list(body.items()) if isinstance(body, dict) else [("the body", body)]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, str):
            yield name, value
        elif isinstance(value, dict):
            waiting += [(f"{name}.{key}", one) for key, one in value.items()]
            waiting += [(name, key) for key in value]
        elif isinstance(value, list):
            waiting += [(name, one) for one in value]
