"""A server of the site for tests: the pages with their policies, and data that a test can change while it runs."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from busco.site.page import away_csp, away_html, frame_csp, frame_html, shell_csp, shell_html
from tests.site_data import DAYS, Data, earlier, release_id

BASE = "/docs/"


@dataclass
class Served:
    """What the server serves, and what it was asked for."""

    data: Data = field(default_factory=dict)
    origin: str = ""
    frame: tuple[str, str] | None = None
    is_logged_in: bool = True
    # the status of the answers to requests for data, by what they ask for
    broken: dict[str, int] = field(default_factory=dict)
    # the most releases in an answer
    most_releases: int = 50
    asked: list[str] = field(default_factory=list)

    def url(self, path: str = "") -> str:
        return f"{self.origin}{BASE}{path}"


@contextmanager
def server() -> Iterator[Served]:
    """Yields what a running server serves."""
    served = Served()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            served.asked.append(self.path)
            try:
                status, headers, body = _answer(served, self.path, self.headers.get("If-None-Match"))
            except Exception as error:
                status, headers, body = 500, {}, repr(error)
            content = body.encode()
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.origin = f"http://127.0.0.1:{running.server_address[1]}"
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield served
    finally:
        running.shutdown()
        running.server_close()
        thread.join()


Answer = tuple[int, dict[str, str], str]


def _answer(served: Served, target: str, etag: str | None) -> Answer:
    url = urlsplit(target)
    query = dict(parse_qsl(url.query))
    if url.path == "/login":
        served.is_logged_in = True
        return 302, {"Location": query["next"]}, ""
    if not url.path.startswith(BASE):
        return 404, {}, "not of the site"
    path = url.path.removeprefix(BASE)
    login = f"/login?next={quote(target, safe='')}"
    if path.startswith("_data/"):
        if not served.is_logged_in:
            return 302, {"Location": login}, ""
        return _data(served, path.removeprefix("_data/"), query, etag)
    if not served.is_logged_in:
        return _page(away_html(login), away_csp())
    if path == "_frame":
        return _page(*(served.frame or (frame_html(), frame_csp())))
    return _page(shell_html(BASE, f"{BASE}_frame"), shell_csp())


def _page(text: str, policy: str) -> Answer:
    headers = {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": policy,
        "Cache-Control": "no-store",
    }
    return 200, headers, text


def _data(served: Served, what: str, query: dict[str, str], etag: str | None) -> Answer:
    if status := served.broken.get(what):
        return status, {"Content-Type": "application/json"}, json.dumps({"error": "broken on purpose"})
    makers: dict[str, Callable[[], Any]] = {
        "state": lambda: _state(served.data, query.get("release")),
        "history": lambda: _history(served, query.get("release")),
        "site": lambda: served.data["sites"].get(query["project"]),
        "table": lambda: _table(served.data, query),
    }
    body = makers[what]()
    if body is None:
        return 404, {"Content-Type": "application/json"}, json.dumps({"error": ""})
    text = json.dumps(body)
    tag = f'"{hashlib.sha256(text.encode()).hexdigest()[:16]}"'
    if etag == tag:
        return 304, {"ETag": tag}, ""
    return 200, {"Content-Type": "application/json", "ETag": tag, "Cache-Control": "no-cache"}, text


def _history(served: Served, release: str | None) -> Data | None:
    history = served.data["history"]
    ids = [one["release"] for one in history["releases"]]
    if release is not None and release not in ids:
        return None
    begin = ids.index(release) if release else 0
    end = begin + served.most_releases
    following = ids[end] if end < len(ids) else history.get("next")
    return {
        **history,
        "releases": history["releases"][begin:end],
        "next": following,
        "complete": history["complete"] and following is None,
    }


def _number(release: str) -> int | None:
    return next((number for number in range(DAYS) if release_id(number) == release), None)


def _state(data: Data, release: str | None) -> Data | None:
    state = data["state"]
    if release in (None, state["live"]):
        return dict(state)
    number = _number(release or "")
    if number is None:
        return None
    entry = data["history"]["releases"][number]
    tables = {
        name: {
            **table,
            "rows": entry["changes"].get(name, table)["rows"],
            "version": entry["changes"].get(name, table)["version"],
        }
        for name, table in state["tables"].items()
        if name != "gold.dim_regions"
    }
    return {**state, **{key: entry[key] for key in ("release", "kind", "who", "published_at")}, "tables": tables}


def _table(data: Data, query: dict[str, str]) -> Data | None:
    content = data["tables"][query["project"]].get(unquote(query["table"]))
    release = query.get("release", "")
    # what a test says of an earlier release: contents by release and table
    said = data.get("earlier", {}).get(release, {}).get(unquote(query["table"]))
    if said:
        return said  # type: ignore[no-any-return]
    number = _number(release) or 0
    if content is None or not number:
        return content  # type: ignore[no-any-return]
    return earlier(content, number)
