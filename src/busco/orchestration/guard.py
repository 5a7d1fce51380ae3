"""Checks requests to Airflow's webserver and to Flower before they are handled.

A web page in a developer's browser can make its own host name resolve to 127.0.0.1 (DNS rebinding). The page's requests
then reach this machine, with the page's host name in the Host header. A page served from another port of this machine,
or from another host name under the company's domain, counts as the same site: the browser sends the session cookie with
the page's requests, and states the page's origin in the Origin header.

PostgreSQL rejects NUL characters in text, and ids are limited to 250 characters (`ID_LEN` in Airflow 2.10.5). Without a
check here, requests that break these limits would end with status 500.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any
from urllib.parse import quote, urlsplit

import re2
from airflow.configuration import conf
from flask import Flask, Response, redirect, request, url_for
from limits import parse
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from busco.settings import get_settings

# a name, an IPv4 address or a bracketed IPv6 address, and an optional port (RFC 9110, section 7.2)
_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^\s:/@?#\[\]\\]+))(?::\d{1,5})?", re.IGNORECASE)
_OWN = frozenset({"localhost", "127.0.0.1", "::1"})
_ORIGIN = re.compile(r"(https?)://([^/?#]+)")
_PORTS = {"http": 80, "https": 443}
# safe methods, which change nothing (RFC 9110, section 9.2.1)
_SAFE = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
_IDS = ("dag_id", "task_id", "run_id", "dag_run_id")
_MOST = 250  # maximum length of an id, in characters
# endpoints that create a run (Airflow 2.10.5): the trigger form, and the REST API
_FORM = "Airflow.trigger"
_API = "/api/v1.airflow_api_connexion_endpoints_dag_run_endpoint_post_dag_run"
# Limits for a request that creates a run. Airflow validates all keys again for each key; 20,000 keys take half a
# minute.
_MOST_BYTES = 65_536
_MOST_KEYS = 100
_FAILURES = parse("10 per minute")
_FAILURES_OF_A_USER = parse("100 per minute")


def allowed_hosts(*urls: str) -> frozenset[str]:
    """Returns the host names, in lower case, by which a server can be reached.

    These are the names that browsers and health checks on this machine use, the host of BUSCO_AIRFLOW_URL, and the
    names in BUSCO_WEB_HOSTS.

    Args:
        urls: further URLs whose hosts are allowed.
    """
    settings = get_settings()
    named = {urlsplit(url).hostname or "" for url in (settings.airflow_url, *urls)}
    more = {name.strip().strip("[]").lower() for name in settings.web_hosts.split(",")}
    return frozenset(_OWN | named | more) - {""}


def host_name(header: str) -> str:
    """Returns the name in a Host header, in lower case and without the port, or '' if the header is malformed."""
    match = _HOST.fullmatch(header)
    return (match[1] or match[2]).lower() if match else ""


def is_of_another_site(
    method: str,
    headers: Mapping[str, str],
    addressed: Collection[str],
    hosts: Collection[str],
    url: str = "",
    secure: bool = False,
) -> bool:
    """Whether a browser sent a state-changing request on behalf of a page that this server did not serve.

    Browsers state the page's origin in headers that the page cannot override: Sec-Fetch-Site, if the connection is
    secure or stays on this machine, and Origin (Fetch standard; Fetch Metadata Request Headers). curl and SDKs send
    neither.

    Args:
        headers: the request's headers, with case-insensitive names.
        addressed: the request's Host headers: the one from the browser and, if there is one, the one from a proxy.
        hosts: the names from `allowed_hosts`.
        url: a URL that is known to be the server's regardless of the Host header, such as BUSCO_AIRFLOW_URL.
        secure: whether the request came over HTTPS.
    """
    if method in _SAFE:
        return False
    site, origin = headers.get("Sec-Fetch-Site", ""), headers.get("Origin", "").lower()
    if site not in ("", "none", "same-origin"):
        return True
    # null with same-origin: the page, or a proxy, asked the browser to hide the origin (Referrer-Policy)
    if not origin or (origin == "null" and site == "same-origin"):
        return False
    match = _ORIGIN.fullmatch(origin)
    if not match:
        return True
    scheme, place = match[1], _place(match[2], match[1])
    if site == "same-origin":
        return place[0] not in hosts
    known = urlsplit(url.lower())
    if scheme == known.scheme and place == _place(known.netloc, scheme):
        return False
    own = {host for host in addressed if _place(host, scheme) == place}
    if scheme == "http" and (secure or (known.scheme == "https" and known.netloc in own)):
        return True
    return not own


def _place(netloc: str, scheme: str) -> tuple[str, int]:
    """Returns the name and port in a Host header or in an origin."""
    port = re.search(r":(\d{1,5})$", netloc)
    return host_name(netloc), int(port[1]) if port else _PORTS[scheme]


class FailedLogins:
    """Counts failed logins in this process.

    After ten failures for one user from one address within a minute, or a hundred for one user from all addresses,
    further attempts are refused. Successful logins are not counted. User names are compared without regard to case.
    """

    def __init__(self) -> None:
        self._limiter = MovingWindowRateLimiter(MemoryStorage())

    def too_many(self, address: str, user: str) -> bool:
        name = user.casefold()
        return not (
            self._limiter.test(_FAILURES, address, name) and self._limiter.test(_FAILURES_OF_A_USER, "of", name)
        )

    def count(self, address: str, user: str) -> None:
        name = user.casefold()
        self._limiter.hit(_FAILURES, address, name)
        self._limiter.hit(_FAILURES_OF_A_USER, "of", name)


def protect(app: Flask) -> None:
    """Installs the request checks in a webserver.

    Requests for unknown hosts, and state-changing requests from other sites' pages, are refused with 403. Text that the
    database would reject, and trigger requests from which Airflow and its event log would read different values, are
    refused with 400.

    Other sites can't embed the webserver's pages in a frame, which prevents clickjacking. Requests for Cosmos's own
    docs pages are redirected to the platform's docs page, because Cosmos would serve its pages to every user and from
    Airflow's origin. Addresses below `/docs/` lead to the site: Airflow registers a view for its developers there.
    """
    hosts, url = allowed_hosts(conf.get("webserver", "base_url")), get_settings().airflow_url

    @app.before_request
    def refuse() -> Any:
        # behind a proxy, check both the Host header that the proxy forwards and the one that it sends itself
        forwarded = request.environ.get("werkzeug.proxy_fix.orig", {}).get("HTTP_HOST")
        current = request.environ.get("HTTP_HOST", "")
        names = {current, forwarded or current}
        for host in names:
            if host_name(host) not in hosts:
                what = f"{host[:_MOST]!r} is not a known host name of this Airflow; add it to BUSCO_WEB_HOSTS"
                return _refusal(403, "Host refused", what)
        if is_of_another_site(request.method, request.headers, names, hosts, url, request.is_secure):
            what = f"pages from {request.headers.get('Origin', 'another site')[:_MOST]!r} can't make changes in Airflow"
            return _refusal(403, "Page refused", f"{what}; Airflow's own address is set in BUSCO_AIRFLOW_URL")
        # checked before the body is read: Werkzeug only limits the size of forms, and anyone can send a body
        if "Transfer-Encoding" in request.headers:
            return _refusal(411, "Length Required", "requests with a body must have a Content-Length")
        if (request.content_length or 0) > (request.max_content_length or math.inf):
            return _refusal(413, "Content Too Large", "the body exceeds allowed_payload_size in Airflow's settings")
        if wrong := _wrong():
            return _refusal(400, "Bad Request", wrong)
        if request.path == "/cosmos" or request.path.startswith("/cosmos/"):
            return redirect(url_for("TaskPages.docs"))
        if request.path == "/docs" or request.path.startswith("/docs/"):
            query = f"?{request.query_string.decode('ascii', 'ignore')}" if request.query_string else ""
            return redirect(f"{url_for('DocsSite.start')}{quote(request.path[len('/docs/') :])}{query}")
        return None

    @app.after_request
    def unframed(answer: Response) -> Response:
        answer.headers.setdefault("X-Frame-Options", "SAMEORIGIN")
        return answer


def _refusal(status: int, title: str, detail: str) -> Response:
    if request.path.startswith(("/api/", "/auth/")):
        body = json.dumps({"status": status, "title": title, "detail": detail})
        answer = Response(body, status, content_type="application/problem+json")
    else:
        answer = Response(f"{title}: {detail}\n", status, content_type="text/plain; charset=utf-8")
    answer.headers["X-Content-Type-Options"] = "nosniff"
    return answer


def _wrong() -> str:
    """Returns what is wrong with the request's content, or '' if it is valid."""
    sent = request.get_data()  # before the form is parsed, which consumes the body
    try:
        # Airflow's API only accepts a body with JSON's content type. For another site's page, a browser sends that
        # content type only after a preflight request, but sends plain text without one. `request.get_json` with `force`
        # would parse plain text too and cache the result, and the API would then use it.
        body = _parsed(sent) if request.is_json else None
        texts = list(_texts(body))
        confs = [_parsed(text) for name, text in texts if name == "conf"]
    except RecursionError:
        return "the body is nested too deeply"
    for name, text in texts:
        if "\0" in text:
            return f"{name} contains a NUL character"
        if name in _IDS and len(text) > _MOST:
            return f"{name} has {len(text):,} characters; the limit is {_MOST}"
    if request.method in _SAFE:
        return ""
    for name in _IDS:
        # Airflow would act on one value, and might record the other in its event log
        if len({text for key, text in texts if key == name}) > 1:
            return f"{name} is given more than once, with different values"
    if request.endpoint not in (_FORM, _API):
        return ""
    if len(sent) > _MOST_BYTES:
        return f"the body is too long: {len(sent):,} bytes; the limit for triggering a run is {_MOST_BYTES:,}"
    if isinstance(body, dict):
        confs.append(body.get("conf"))
    for given in confs:
        if isinstance(given, dict) and len(given) > _MOST_KEYS:
            return f"conf has {len(given):,} keys; the limit is {_MOST_KEYS}"
    return _wrong_run_id([text for name, text in texts if name == "dag_run_id"])


def _wrong_run_id(given: list[str]) -> str:
    """Returns what is wrong with the `dag_run_id` of a trigger request, or '' if it is valid."""
    if request.endpoint == _FORM:
        # the form only reads `run_id`, but the event log takes the run's id from either field
        return "this form has no field dag_run_id; use run_id" if given else ""
    pattern = conf.get("scheduler", "allowed_run_id_pattern")
    for text in given:
        # without this check, Airflow (2.10.5) would respond with status 500
        if text and not re2.match(pattern, text):
            return f"dag_run_id {text!r} does not match {pattern}"
    return ""


def _parsed(text: str | bytes) -> Any:
    """Parses JSON; returns None if the text is not JSON."""
    try:
        return json.loads(text) if text else None
    except ValueError:
        return None


def _texts(body: Any) -> Iterator[tuple[str, str]]:
    """Yields each string in the request, with its name.

    Args:
        body: the request's parsed body, if it is JSON.
    """
    yield "the path", request.path
    yield from request.args.items(multi=True)
    if (login := request.authorization) is not None:
        yield "the user's name", login.username or ""
        yield "the password", login.password or ""
    yield from request.form.items(multi=True)
    waiting: list[tuple[str, Any]] = [*body.items()] if isinstance(body, dict) else [("the body", body)]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, str):
            yield name, value
        elif isinstance(value, dict):
            waiting += [(f"{name}.{key}", one) for key, one in value.items()]
            waiting += [(name, key) for key in value]
        elif isinstance(value, list):
            waiting += [(name, one) for one in value]
