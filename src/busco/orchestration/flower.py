"""Runs Flower behind the admin's login and a host check: `python -m busco.orchestration.flower`, with Flower's options.

Flower's own login leaves some pages open, such as the metrics, and does not limit failed logins. With this module, only
the health check is open.
"""

from __future__ import annotations

import hmac
import os
import sys
from base64 import b64decode
from typing import Any

from flower import command
from flower.app import Flower
from tornado.httputil import HTTPHeaders, HTTPServerRequest
from tornado.web import ErrorHandler, OutputTransform

from busco.errors import BuscoError
from busco.orchestration.access import admin, refuse_known
from busco.orchestration.guard import FailedLogins, allowed_hosts, host_name, is_of_another_site

_OWN_LOGIN = "AIRFLOW__CELERY__FLOWER_BASIC_AUTH"


def login() -> str:
    """Returns Flower's login, `user:password`.

    This is the login in Airflow's setting for Flower or, if that is not set, the login of Airflow's admin.

    Raises:
        BuscoError: neither is set, or, on AWS, the password is well known.
    """
    name, password = admin()
    found = os.environ.get(_OWN_LOGIN) or (f"{name}:{password}" if password else "")
    if not found:
        raise BuscoError("Flower has no login", f"set AIRFLOW_ADMIN_PASSWORD, or set {_OWN_LOGIN} to user:password")
    refuse_known(found.partition(":")[2], "Flower's password")
    return found


class GuardedFlower(Flower):  # type: ignore[misc]
    """A Flower server that requires a known host and, except for the health check, a valid login."""

    def __init__(self, options: Any = None, **kwargs: Any) -> None:
        # Flower's own login check stays on: if a login is set, Flower enables its API and refuses cross-site requests
        options.basic_auth = [login()]
        super().__init__(options=options, **kwargs)
        self._hosts, self._failed = allowed_hosts(), FailedLogins()
        self.add_transform(_Unframed)
        prefix = (options.url_prefix or "").strip("/")
        self._open = f"/{prefix}/healthcheck" if prefix else "/healthcheck"

    def find_handler(self, request: HTTPServerRequest, **kwargs: Any) -> Any:
        """Returns the handler for a request (overrides Tornado's method)."""
        status = self._refused(request)
        if status:
            return self.get_handler_delegate(request, _Refusal, {"status_code": status})
        return super().find_handler(request, **kwargs)

    def _refused(self, request: HTTPServerRequest) -> int:
        """Returns the status with which a request is refused, or 0 if it is allowed."""
        host = request.headers.get("Host", "")
        if host_name(host) not in self._hosts:
            return 403
        # a browser adds the login to every request, including those that another site's page makes it send
        secure = request.protocol == "https"
        if is_of_another_site(str(request.method), request.headers, {host}, self._hosts, secure=secure):
            return 403
        if request.path == self._open:
            return 0
        given = _credentials(request.headers.get("Authorization", ""))
        if not given:
            return 401
        tried = str(request.remote_ip), given.partition(":")[0]
        if self._failed.too_many(*tried):
            return 429
        if not hmac.compare_digest(given.encode(), self.options.basic_auth[0].encode()):
            self._failed.count(*tried)
            return 401
        return 0


def _credentials(header: str) -> str:
    """Returns `user:password` from an Authorization header (RFC 7617), or '' if it has none."""
    kind, _, encoded = header.partition(" ")
    if kind.lower() != "basic":
        return ""
    try:
        return b64decode(encoded.strip(), validate=True).decode()
    except ValueError:
        return ""


class _Unframed(OutputTransform):
    """Prevents clickjacking: browsers do not show any of the pages in a frame."""

    def transform_first_chunk(
        self,
        status_code: int,
        headers: HTTPHeaders,
        chunk: bytes,
        finishing: bool,  # noqa: ARG002
    ) -> tuple[int, HTTPHeaders, bytes]:
        headers["X-Frame-Options"] = "DENY"
        return status_code, headers, chunk


class _Refusal(ErrorHandler):
    def write_error(self, status_code: int, **_: Any) -> None:
        if status_code == 401:
            self.set_header("WWW-Authenticate", 'Basic realm="flower"')
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish(f"{status_code}: {self._reason}\n")


def main() -> None:
    """Runs `airflow celery flower`, with GuardedFlower in place of Flower's own server."""
    from airflow.__main__ import main as airflow

    try:
        login()
    except BuscoError as error:
        raise SystemExit(f"error: {error}") from error
    command.Flower = GuardedFlower
    sys.argv = ["airflow", "celery", "flower", *sys.argv[1:]]
    airflow()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
