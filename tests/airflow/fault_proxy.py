"""A fault-injecting proxy in front of the local AWS: it answers some ECS calls itself, and records reads and writes."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

from tests.loopback import Handler
from tests.unit.memory_s3 import missing_condition

Answer = tuple[int, dict[str, Any]]
Forwarded = tuple[int, bytes, dict[str, str]]
Fault = Callable[[dict[str, Any]], "Answer | None"]
_OF_ONE_HOP = {"connection", "content-length", "date", "expect", "keep-alive", "server", "transfer-encoding"}


class Proxy:
    """Answers the next calls of an action with the given faults, and forwards all others to the local AWS."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint, self.calls = endpoint, list[str]()
        # for each object that was written: its path and the request's headers, with lower-case names
        self.puts: list[tuple[str, dict[str, str]]] = []
        # the method (GET or HEAD) and path of each request that reads
        self.reads: list[tuple[str, str]] = []
        self._faults: dict[str, list[Fault]] = {}
        self._tokens: dict[str, Forwarded] = {}
        self.lock = threading.Lock()

    def fail(self, action: str, *faults: Fault) -> None:
        self._faults.setdefault(action, []).extend(faults)

    def unconditional(self, bucket: str) -> list[str]:
        """Returns the keys that were written without a condition that the lake's bucket policy requires."""
        found = []
        for path, headers in self.puts:
            key = unquote(path.partition("?")[0].removeprefix(f"/{bucket}/"))
            if missing := missing_condition(key, headers.get("if-none-match"), headers.get("if-match")):
                found.append(f"{key}: {missing}")
        return found

    def handler(proxy) -> type[Handler]:
        class Answering(Handler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                action = self.headers.get("X-Amz-Target", "").rpartition(".")[2]
                with proxy.lock:
                    proxy.calls.append(action)
                    if self.command == "PUT":
                        sent = {name.lower(): value for name, value in self.headers.items()}
                        proxy.puts.append((self.path, sent))
                    if self.command in ("GET", "HEAD"):
                        proxy.reads.append((self.command, self.path))
                    waiting = proxy._faults.get(action) or []
                    fault = waiting.pop(0) if waiting else None
                faulty = fault(json.loads(body)) if fault else None
                if faulty is not None:
                    status, content = faulty
                    self.answer(status, json.dumps(content).encode(), {"Content-Type": "application/x-amz-json-1.1"})
                    return
                status, answer, headers = proxy.forward(self, action, body)
                if fault is not None:
                    # the call was carried out, but its response is lost
                    self.close_connection = True
                    return
                self.answer(status, answer, headers)

            do_GET = do_PUT = do_HEAD = do_DELETE = do_POST

        return Answering

    def forward(self, request: Handler, action: str, body: bytes) -> Forwarded:
        """Returns the local AWS's response. As on AWS, repeating a client token returns the task started with it."""
        token = json.loads(body).get("clientToken") if action == "RunTask" else None
        if token is None:
            return self._ask(request, body)
        if token not in self._tokens:
            self._tokens[token] = self._ask(request, body)
        return self._tokens[token]

    def _ask(self, request: Handler, body: bytes) -> Forwarded:
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _OF_ONE_HOP}
        headers.setdefault("Content-Type", "application/octet-stream")  # urllib's default is a form's
        method = request.command
        outgoing = urllib.request.Request(self.endpoint + request.path, body or None, headers, method=method)
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(outgoing) as answer:
                return _forwarded(answer, method)
        except urllib.error.HTTPError as refused:
            return _forwarded(refused, method)


def _forwarded(answer: Any, method: str) -> Forwarded:
    # the response to HEAD has no body, but states the length of the object
    dropped = _OF_ONE_HOP - {"content-length"} if method == "HEAD" else _OF_ONE_HOP
    kept = {name: value for name, value in answer.headers.items() if name.lower() not in dropped}
    return answer.status, answer.read(), kept


def lost(_: dict[str, Any]) -> None:
    """The call is carried out, but its response is lost."""


def error(code: str, message: str, status: int = 400) -> Fault:
    return lambda _: (status, {"__type": code, "message": message})


def failure(reason: str, detail: str = "") -> Fault:
    return lambda _: (200, {"tasks": [], "failures": [{"reason": reason, "detail": detail}]})
