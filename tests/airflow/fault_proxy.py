"""Faults at the wire: a server before the local AWS that answers some calls of ECS itself, and logs what is written."""

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
    """Stands before the local AWS: answers the next calls of an action itself, and lets all others through."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint, self.calls = endpoint, list[str]()
        # of each object that was written: its path and the request's headers, their names in lower case
        self.puts: list[tuple[str, dict[str, str]]] = []
        self._faults: dict[str, list[Fault]] = {}
        self._tokens: dict[str, Forwarded] = {}
        self.lock = threading.Lock()

    def fail(self, action: str, *faults: Fault) -> None:
        self._faults.setdefault(action, []).extend(faults)

    def unconditional(self, bucket: str) -> list[str]:
        """What was written without a condition that the lake's bucket policy asks for."""
        found = []
        for path, said in self.puts:
            key = unquote(path.partition("?")[0].removeprefix(f"/{bucket}/"))
            if missing := missing_condition(key, said.get("if-none-match"), said.get("if-match")):
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
                        said = {name.lower(): value for name, value in self.headers.items()}
                        proxy.puts.append((self.path, said))
                    waiting = proxy._faults.get(action) or []
                    fault = waiting.pop(0) if waiting else None
                told = fault(json.loads(body)) if fault else None
                if told is not None:
                    status, content = told
                    self.answer(status, json.dumps(content).encode(), {"Content-Type": "application/x-amz-json-1.1"})
                    return
                status, answer, headers = proxy.forward(self, action, body)
                if fault is not None:
                    # it was done, and the answer never came
                    self.close_connection = True
                    return
                self.answer(status, answer, headers)

            do_GET = do_PUT = do_HEAD = do_DELETE = do_POST

        return Answering

    def forward(self, request: Handler, action: str, body: bytes) -> Forwarded:
        """The local AWS's answer; as on AWS, a client token that was used gives the task that was started with it."""
        token = json.loads(body).get("clientToken") if action == "RunTask" else None
        if token is None:
            return self._ask(request, body)
        if token not in self._tokens:
            self._tokens[token] = self._ask(request, body)
        return self._tokens[token]

    def _ask(self, request: Handler, body: bytes) -> Forwarded:
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _OF_ONE_HOP}
        headers.setdefault("Content-Type", "application/octet-stream")  # urllib's own is that of a form
        method = request.command
        asked = urllib.request.Request(self.endpoint + request.path, body or None, headers, method=method)
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(asked) as answer:
                return _forwarded(answer, method)
        except urllib.error.HTTPError as refused:
            return _forwarded(refused, method)


def _forwarded(answer: Any, method: str) -> Forwarded:
    # the length of what HEAD does not send is the object's
    dropped = _OF_ONE_HOP - {"content-length"} if method == "HEAD" else _OF_ONE_HOP
    kept = {name: value for name, value in answer.headers.items() if name.lower() not in dropped}
    return answer.status, answer.read(), kept


def lost(_: dict[str, Any]) -> None:
    """Done, but the answer is lost."""


def error(code: str, message: str, status: int = 400) -> Fault:
    return lambda _: (status, {"__type": code, "message": message})


def failure(reason: str, detail: str = "") -> Fault:
    return lambda _: (200, {"tasks": [], "failures": [{"reason": reason, "detail": detail}]})
