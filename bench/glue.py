"""Measures how long it takes to show a release in Glue: wall time, and the window in which Glue has two releases mixed.

A stub of Glue runs as a process of its own. It answers each call after 30 ms, lists 100 tables a page, and checks
VersionId. Optionally it throttles like a token bucket: calls that find the bucket empty are rejected, and a rejected
call takes no token. The client, its retries and the sync are the real ones; the lake is in memory.

usage: .venv-dbt/bin/python -m bench.glue [--tables N] [--changed N] [--rate CALLS] [--burst CALLS] [--calls N]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

LATENCY = 0.03
HOME = Path(__file__).parents[1]
# The tables that each measurement publishes and changes, and the calls a second that the stub accepts (0: any number).
CASES = ((20, 20, 0.0), (1000, 1000, 0.0), (1000, 20, 0.0), (1000, 0, 0.0), (20, 20, 20.0), (300, 300, 20.0),
         (1000, 1000, 20.0))  # fmt: skip


def main() -> None:
    """Prints a line for each measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=int, help="tables in the release (default: a list of cases)")
    parser.add_argument("--changed", type=int, help="tables that the measured release changes (default: all)")
    parser.add_argument("--rate", type=float, default=0.0, help="calls a second that the stub accepts; 0: any number")
    parser.add_argument("--burst", type=float, help="calls that it accepts at once (default: those of one second)")
    parser.add_argument("--calls", type=int, help="calls at once (default: the setting's)")
    parser.add_argument("--stub", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.stub:
        asyncio.run(Stub().serve(given.stub))
        return
    cases = [(given.tables, given.tables if given.changed is None else given.changed, given.rate)]
    print(
        "| tables | changed | stub accepts | sync, s | mixed for, s | calls | throttled | target, s | written twice |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for tables, changed, rate in cases if given.tables else CASES:
        found = measure(tables, changed, rate, given.burst, given.calls)
        # with a rate: 1.2 times as long as it takes to make so many calls at that rate
        limit = 1.2 * found["accepted"] / rate if rate else 0.3 if tables <= 20 else 10
        print(
            f"| {tables} | {changed} | {f'{rate:g} a second' if rate else 'all'} | {found['seconds']:.2f} | "
            f"{found['mixed']:.2f} | {found['accepted']} | {found['throttled']} | {limit:.2f} | {found['twice']} |",
            flush=True,
        )


def measure(tables: int, changed: int, rate: float, burst: float | None, calls: int | None) -> dict[str, Any]:
    """Shows a release, publishes another one, and measures showing that.

    Returns `seconds`, `mixed` (seconds between the first and the last write), `accepted` and `throttled` (calls), and
    `twice` (tables that were written more than once).
    """
    os.environ.update(AWS_ACCESS_KEY_ID="bench", AWS_SECRET_ACCESS_KEY="bench", BUSCO_HOME=str(HOME))
    from busco.aws import publisher_client
    from busco.catalog import glue
    from busco.lake.objects import ObjectStore
    from busco.settings import LAYERS, Settings
    from tests.unit.lake import ENVIRONMENT
    from tests.unit.memory_s3 import MemoryS3
    from tests.unit.wide_lake import publish

    stub = subprocess.Popen(
        [sys.executable, "-m", "bench.glue", "--stub", "-"], cwd=HOME, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert stub.stdout is not None
        url = f"http://127.0.0.1:{int(stub.stdout.readline())}"
        given: dict[str, Any] = {} if calls is None else {"glue_calls": calls}
        os.environ["BUSCO_ENDPOINT_URL"] = url
        settings = Settings(lake_bucket="lake", publisher_role_arn="", **given)
        store = ObjectStore(MemoryS3(), "lake")
        names = [f"gold.t{n:04}" for n in range(tables)]
        publish(store, dict.fromkeys(names, "v1"), description="What it is")

        def show() -> None:
            client = publisher_client("glue", settings, **glue.client_options(settings.glue_calls))
            glue.sync(client, store, ENVIRONMENT, settings.database, LAYERS, settings.glue_calls)

        show()
        publish(store, dict.fromkeys(names, "v1") | dict.fromkeys(names[:changed], "v2"), description="What it is")
        control(url, "reset", rate=rate, burst=rate if burst is None else burst)
        began = time.monotonic()
        show()
        seconds = time.monotonic() - began
        found: dict[str, Any] = control(url, "figures")
        shown = found.pop("shown")
    finally:
        stub.kill()
        stub.wait()
    assert sorted(shown) == ["v1"] * (tables - changed) + ["v2"] * changed, "a table is outdated"
    return {**found, "seconds": seconds}


def control(url: str, action: str, **values: float) -> Any:
    """Sends a request to the stub that is not a call to Glue, and returns its answer."""
    import urllib.request

    request = urllib.request.Request(url, json.dumps(values).encode(), {"X-Amz-Target": f"Stub.{action}"})
    with urllib.request.urlopen(request) as answer:
        return json.loads(answer.read())


class Stub:
    """An HTTP server that answers the calls of a sync as Glue does, with a fixed latency and optional throttling."""

    def __init__(self) -> None:
        self.tables: dict[tuple[str, str], dict[str, Any]] = {}
        self.reset(0.0, 0.0)

    def reset(self, rate: float, burst: float) -> None:
        """Forgets all figures; accepts `burst` calls at once and `rate` calls a second, or any number if it is 0."""
        self.rate, self.burst, self.tokens, self.filled = rate, burst, burst, time.monotonic()
        self.accepted = self.throttled = 0
        self.writes: Counter[tuple[str, str]] = Counter()
        self.written_at: list[float] = []

    async def serve(self, _: str) -> None:
        """Serves until the process is killed; prints the port first."""
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
                fields = dict(line.split(": ", 1) for line in head[1:] if ": " in line)
                body = json.loads(await reader.readexactly(int(fields["content-length"])) or b"{}")
                service, _, action = fields["x-amz-target"].partition(".")
                status, answer = await self._answer(service, action, body)
                data = json.dumps(answer).encode()
                kind = b"Content-Type: application/x-amz-json-1.1"
                writer.write(b"HTTP/1.1 %d X\r\n%b\r\nContent-Length: %d\r\n\r\n" % (status, kind, len(data)) + data)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def _answer(self, service: str, action: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if service == "stub":
            if action == "reset":
                self.reset(**body)
                return 200, {}
            return 200, {
                "accepted": self.accepted, "throttled": self.throttled,
                "mixed": self.written_at[-1] - self.written_at[0] if self.written_at else 0.0,
                "twice": sum(count > 1 for count in self.writes.values()),
                "shown": [table["Parameters"]["busco.version"] for table in self.tables.values()],
            }  # fmt: skip
        accepted = self._accepts()
        await asyncio.sleep(LATENCY)
        if not accepted:
            self.throttled += 1
            return 400, {"__type": "ThrottlingException", "Message": "Rate exceeded"}
        self.accepted += 1
        return self._perform(action, body)

    def _accepts(self) -> bool:
        if not self.rate:
            return True
        now = time.monotonic()
        self.tokens = min(self.burst, self.tokens + (now - self.filled) * self.rate)
        self.filled = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True

    def _perform(self, action: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        database = body["DatabaseName"]
        if action == "gettables":
            names = sorted(name for found, name in self.tables if found == database)
            start = int(body.get("NextToken", 0))
            page = [self.tables[database, name] for name in names[start : start + 100]]
            more = {"NextToken": str(start + 100)} if start + 100 < len(names) else {}
            return 200, {"TableList": page, **more}
        given = body.get("TableInput", {})
        key = (database, body.get("Name") or given["Name"])
        found = self.tables.get(key)
        if action == "createtable":
            if found is not None:
                return 400, {"__type": "AlreadyExistsException"}
            return self._write(key, given, "0")
        if found is None:
            return 400, {"__type": "EntityNotFoundException"}
        if action == "gettable":
            return 200, {"Table": found}
        if action == "deletetable":
            del self.tables[key]
            return 200, {}
        if body["VersionId"] != found["VersionId"]:
            return 400, {"__type": "ConcurrentModificationException"}
        return self._write(key, given, str(int(found["VersionId"]) + 1))

    def _write(self, key: tuple[str, str], given: dict[str, Any], version: str) -> tuple[int, dict[str, Any]]:
        self.tables[key] = {**given, "VersionId": version}
        self.writes[key] += 1
        self.written_at.append(time.monotonic())
        return 200, {}


if __name__ == "__main__":
    main()
