"""AWS credentials that expire within seconds: a container endpoint that issues them and an S3 that refuses old ones."""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from urllib.parse import unquote, urlparse

from botocore.auth import S3SigV4Auth, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from tests.loopback import Handler, serving

TOKEN = "an-authorization-token"
_KEY = re.compile(r"Credential=([^/]+)/\d+/([^/]+)/([^/]+)/")
_EXPIRED = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n'
    b"<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>"
)
_OF_THE_CONNECTION = frozenset({"connection", "transfer-encoding", "content-length", "host", "date", "server"})
_NOT_PASSED_ON = _OF_THE_CONNECTION | {
    "authorization", "x-amz-date", "x-amz-security-token", "x-amz-content-sha256"
}  # fmt: skip


@dataclass
class Expiring:
    """The keys that the endpoint issued with their expiry times, and the number of requests made with each."""

    seconds: float
    endpoint: str = ""
    s3: str = ""
    keys: dict[str, float] = field(default_factory=dict)
    used: Counter[str] = field(default_factory=Counter)
    refused: list[str] = field(default_factory=list)
    # folder → how long each read of an object below it takes, in seconds
    slow: dict[str, float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def variables(self) -> dict[str, str]:
        """Environment variables with which a process that has no other credentials finds these."""
        return {
            "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{self.endpoint}/v2/credentials",
            "AWS_CONTAINER_AUTHORIZATION_TOKEN": TOKEN,
            "AWS_CONFIG_FILE": "/dev/null",
            "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
        }

    def current(self) -> dict[str, str]:
        """Returns the current credentials, as Amazon ECS does: the same until half of their lifetime is over."""
        now = time.time()
        with self._lock:
            key = next((key for key, expiry in self.keys.items() if expiry - now > self.seconds / 2), "")
            if not key:
                key = f"ASIA{len(self.keys):016}"
                self.keys[key] = now + self.seconds
            expiry = datetime.fromtimestamp(self.keys[key], UTC)
        return {
            "RoleArn": "arn:aws:iam::123456789012:role/busco-task",
            "AccessKeyId": key,
            "SecretAccessKey": "secret-of-" + key,
            "Token": "token-of-" + key,
            "Expiration": expiry.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }

    def wait(self, path: str) -> None:
        for folder, seconds in self.slow.items():
            if f"/{folder}/" in path:
                threading.Event().wait(seconds)

    def good(self, key: str, token: str) -> bool:
        return token == f"token-of-{key}" and time.time() < self.keys.get(key, 0)


@contextmanager
def expiring(seconds: float, upstream: str, owner: Credentials) -> Iterator[Expiring]:
    """Yields credentials with a lifetime of `seconds`, and a proxy in front of the local AWS at `upstream`.

    The proxy refuses expired credentials and forwards all other requests, signed by the local AWS's owner.
    """
    made = Expiring(seconds)
    target = urlparse(upstream)

    class Endpoint(Handler):
        def do_GET(self) -> None:
            if self.headers.get("Authorization") != TOKEN:
                self.answer(401)
            else:
                self.answer(200, json.dumps(made.current()).encode(), {"Content-Type": "application/json"})

    class S3(Handler):
        def pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            found = _KEY.search(self.headers.get("Authorization", ""))
            key = found.group(1) if found else ""
            if not made.good(key, self.headers.get("x-amz-security-token", "")):
                made.refused.append(f"{self.command} {unquote(self.path)} {key}")
                self.answer(400, _EXPIRED, {"Content-Type": "application/xml"})
                return
            made.used[key] += 1
            if self.command in ("GET", "HEAD"):
                made.wait(unquote(self.path))
            headers = {name: value for name, value in self.headers.items() if name.lower() not in _NOT_PASSED_ON}
            forwarded = AWSRequest(self.command, f"{upstream}{self.path}", headers, body)
            region, service = (found.group(2), found.group(3)) if found else ("", "")
            if service == "s3":
                forwarded.headers["x-amz-content-sha256"] = hashlib.sha256(body).hexdigest()
            (S3SigV4Auth if service == "s3" else SigV4Auth)(owner, service, region).add_auth(forwarded)
            upward = http.client.HTTPConnection(str(target.hostname), target.port, timeout=30)
            upward.request(self.command, self.path, body, dict(forwarded.headers.items()))
            answer = upward.getresponse()
            content = answer.read()
            upward.close()
            back = {name: value for name, value in answer.getheaders() if name.lower() not in _OF_THE_CONNECTION}
            length = answer.getheader("Content-Length") if self.command == "HEAD" else None
            self.answer(answer.status, content, {**back, "Content-Length": length or str(len(content))})

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = pass_on

    with serving(Endpoint) as endpoint, serving(S3) as s3:
        made.endpoint, made.s3 = endpoint, s3
        yield made
