"""What Airflow's webserver and Flower refuse of a request before anybody looks at it.

A web page in a developer's browser may let its own name resolve to 127.0.0.1 (DNS rebinding): such a request has the
page's name as its Host. A page of another port of this machine, or of another name below the company's domain, is of
the same site: a browser sends the session's cookie with what it posts, and says whose page it was (Origin). PostgreSQL
takes no NUL in a text, and ids have 250 characters (`ID_LEN` in Airflow 2.10.5): without a refusal here such a request
ends with status 500.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterator, Mapping
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
_ORIGIN = re.compile(r"(https?)://([^/?#]+)")
_PORTS = {"http": 80, "https": 443}
# methods that change nothing (RFC 9110, section 9.2.1)
_SAFE = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
_IDS = ("dag_id", "task_id", "run_id", "dag_run_id")
_MOST = 250  # characters of an id
# what makes a run (Airflow 2.10.5): the page's form, and the REST API
_FORM = "Airflow.trigger"
_API = "/api/v1.airflow_api_connexion_endpoints_dag_run_endpoint_post_dag_run"
# Of a request that makes a run. Airflow checks all keys again for each key: 20,000 of them take half a minute.
_MOST_BYTES = 65_536
_MOST_KEYS = 100
_FAILURES = parse("10 per minute")
_FAILURES_OF_A_USER = parse("100 per minute")


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


def is_of_another_site(
    method: str,
    said: Mapping[str, str],
    asked: Collection[str],
    hosts: Collection[str],
    url: str = "",
    secure: bool = False,
) -> bool:
    """Whether a request that changes something was sent by a browser for a page that is not this server's own.

    Browsers say whose page it is, and no page can say otherwise: in Sec-Fetch-Site where the connection is secure or
    stays on this machine, and in Origin (Fetch standard; Fetch Metadata Request Headers). curl and SDKs say neither.

    Args:
        said: the request's header fields, by their names in whatever case.
        asked: the Host headers by which the server was asked: the browser's, a proxy's.
        hosts: the names of `allowed_hosts`.
        url: an address of the server that is known whatever Host says, as of BUSCO_AIRFLOW_URL.
        secure: whether the request came by https.
    """
    if method in _SAFE:
        return False
    site, origin = said.get("Sec-Fetch-Site", ""), said.get("Origin", "").lower()
    if site not in ("", "none", "same-origin"):
        return True
    # null with same-origin: the page, or a proxy, wants no address to be passed on (Referrer-Policy)
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
    own = {host for host in asked if _place(host, scheme) == place}
    if scheme == "http" and (secure or (known.scheme == "https" and known.netloc in own)):
        return True
    return not own


def _place(netloc: str, scheme: str) -> tuple[str, int]:
    """Name and port of a Host header or of an origin."""
    port = re.search(r":(\d{1,5})$", netloc)
    return host_name(netloc), int(port[1]) if port else _PORTS[scheme]


class FailedLogins:
    """Counts failed logins in this process: after ten of one user from one address within a minute, or a hundred of one
    user from wherever, no more are tried.

    Logins that succeed are not counted. A user's name counts in whatever case it is written.
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
    """Makes a webserver refuse unknown hosts and pages of other sites that would change something (403), texts that no
    database takes, and requests for a run that Airflow and its event log read differently (400).

    No page of another site may have one of its pages in a frame, to have a person click there. Cosmos's own docs pages,
    which are served to every user and in Airflow's origin, lead to the platform's.
    """
    hosts, url = allowed_hosts(conf.get("webserver", "base_url")), get_settings().airflow_url

    @app.before_request
    def refuse() -> Any:
        # behind a proxy both the name that it forwards and the one that it asked for
        forwarded = request.environ.get("werkzeug.proxy_fix.orig", {}).get("HTTP_HOST")
        asked = request.environ.get("HTTP_HOST", "")
        names = {asked, forwarded or asked}
        for host in names:
            if host_name(host) not in hosts:
                what = f"this Airflow is not known as {host[:_MOST]!r}; its names are those of BUSCO_WEB_HOSTS"
                return _refusal(403, "Host refused", what)
        if is_of_another_site(request.method, request.headers, names, hosts, url, request.is_secure):
            what = f"a page of {request.headers.get('Origin', 'another site')[:_MOST]!r} may change nothing in Airflow"
            return _refusal(403, "Page refused", f"{what}; its own address is BUSCO_AIRFLOW_URL")
        # before anything is read: the library bounds forms only, and anybody may send a body
        if "Transfer-Encoding" in request.headers:
            return _refusal(411, "Length Required", "a body has a Content-Length here")
        if (request.content_length or 0) > (request.max_content_length or math.inf):
            return _refusal(413, "Content Too Large", "see allowed_payload_size in Airflow's configuration")
        if wrong := _wrong():
            return _refusal(400, "Bad Request", wrong)
        if request.path == "/cosmos" or request.path.startswith("/cosmos/"):
            return redirect(url_for("TaskPages.docs"))
        return None

    @app.after_request
    def unframed(answer: Response) -> Response:
        answer.headers.setdefault("X-Frame-Options", "SAMEORIGIN")
        return answer


def _refusal(status: int, title: str, detail: str) -> Response:
    if request.path.startswith(("/api/", "/auth/")):
        said = json.dumps({"status": status, "title": title, "detail": detail})
        answer = Response(said, status, content_type="application/problem+json")
    else:
        answer = Response(f"{title}: {detail}\n", status, content_type="text/plain; charset=utf-8")
    answer.headers["X-Content-Type-Options"] = "nosniff"
    return answer


def _wrong() -> str:
    """What is wrong with what the request says; '' where nothing is."""
    sent = request.get_data()  # before the form is read, which would leave nothing of it
    try:
        # Airflow's API takes JSON by its type alone, since a browser asks before it posts that for another site's page,
        # and posts text unasked. `request.get_json` would keep what it reads by force, and the API would have it.
        body = _parsed(sent) if request.is_json else None
        texts = list(_texts(body))
        confs = [_parsed(text) for name, text in texts if name == "conf"]
    except RecursionError:
        return "the body is nested too deeply"
    for name, text in texts:
        if "\0" in text:
            return f"{name} has a NUL character"
        if name in _IDS and len(text) > _MOST:
            return f"{name} has {len(text):,} characters, and none has more than {_MOST}"
    if request.method in _SAFE:
        return ""
    for name in _IDS:
        # Airflow does it to one of them, and may have the other one in its event log
        if len({text for said, text in texts if said == name}) > 1:
            return f"{name} is given more than once, and not the same"
    if request.endpoint not in (_FORM, _API):
        return ""
    if len(sent) > _MOST_BYTES:
        return f"the body is too long: it has {len(sent):,} bytes, and a trigger's has no more than {_MOST_BYTES:,}"
    if isinstance(body, dict):
        confs.append(body.get("conf"))
    for given in confs:
        if isinstance(given, dict) and len(given) > _MOST_KEYS:
            return f"conf has {len(given):,} keys, and no run has more than {_MOST_KEYS}"
    return _wrong_run_id([text for name, text in texts if name == "dag_run_id"])


def _wrong_run_id(given: list[str]) -> str:
    """What is wrong with a trigger's `dag_run_id`; '' where nothing is."""
    if request.endpoint == _FORM:
        # which reads `run_id` alone; the event log has the run's id from either
        return "dag_run_id is no field of this form; the run's id is run_id" if given else ""
    pattern = conf.get("scheduler", "allowed_run_id_pattern")
    for text in given:
        # Airflow (2.10.5) answers with status 500
        if text and not re2.match(pattern, text):
            return f"dag_run_id {text!r} does not match {pattern}"
    return ""


def _parsed(text: str | bytes) -> Any:
    """What JSON says; None where it is none."""
    try:
        return json.loads(text) if text else None
    except ValueError:
        return None


def _texts(body: Any) -> Iterator[tuple[str, str]]:
    """The texts that a request has, with their names.

    Args:
        body: the request's, where it is JSON.
    """
    yield "the path", request.path
    yield from request.args.items(multi=True)
    if (said := request.authorization) is not None:
        yield "the user's name", said.username or ""
        yield "the password", said.password or ""
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
