"""Flower with the admin's login, for known hosts only: `python -m busco.orchestration.flower`, options as Flower's.

Flower's own login leaves some pages open (metrics) and limits nobody; here only the health check is open.
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
    """`user:password` of Flower: Airflow's own setting for it where it is set, else the admin's of Airflow.

    Raises:
        BuscoError: there is neither, or on AWS one that everybody knows.
    """
    name, password = admin()
    said = os.environ.get(_OWN_LOGIN) or (f"{name}:{password}" if password else "")
    if not said:
        raise BuscoError("Flower has no login", f"set AIRFLOW_ADMIN_PASSWORD, or {_OWN_LOGIN} to user:password")
    refuse_known(said.partition(":")[2], "Flower's password")
    return said


class GuardedFlower(Flower):  # type: ignore[misc]
    """Flower, which answers nobody but its health check without host and login being right."""

    def __init__(self, options: Any = None, **kwargs: Any) -> None:
        # Flower's own check stays: with a login it also has an API, and refuses requests from other sites
        options.basic_auth = [login()]
        super().__init__(options=options, **kwargs)
        self._hosts, self._failed = allowed_hosts(), FailedLogins()
        self.add_transform(_Unframed)
        prefix = (options.url_prefix or "").strip("/")
        self._open = f"/{prefix}/healthcheck" if prefix else "/healthcheck"

    def find_handler(self, request: HTTPServerRequest, **kwargs: Any) -> Any:
        """Tornado's: who answers a request."""
        status = self._refused(request)
        if status:
            return self.get_handler_delegate(request, _Refusal, {"status_code": status})
        return super().find_handler(request, **kwargs)

    def _refused(self, request: HTTPServerRequest) -> int:
        """The status with which a request is refused; 0 where it is not."""
        host = request.headers.get("Host", "")
        if host_name(host) not in self._hosts:
            return 403
        # a browser sends the login with whatever a page has it send
        secure = request.protocol == "https"
        if is_of_another_site(str(request.method), request.headers, {host}, self._hosts, secure=secure):
            return 403
        if request.path == self._open:
            return 0
        said = _credentials(request.headers.get("Authorization", ""))
        if not said:
            return 401
        tried = str(request.remote_ip), said.partition(":")[0]
        if self._failed.too_many(*tried):
            return 429
        if not hmac.compare_digest(said.encode(), self.options.basic_auth[0].encode()):
            self._failed.count(*tried)
            return 401
        return 0


def _credentials(header: str) -> str:
    """`user:password` of an Authorization header (RFC 7617); '' where it has none."""
    kind, _, encoded = header.partition(" ")
    if kind.lower() != "basic":
        return ""
    try:
        return b64decode(encoded.strip(), validate=True).decode()
    except ValueError:
        return ""


class _Unframed(OutputTransform):
    """No page may be in another page's frame, to have a person click there."""

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
    """Airflow's own command line, with our Flower in place of its."""
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
