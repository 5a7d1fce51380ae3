"""Simulated time, and an S3 that is slow, fails single calls and loses replies, and whose callers die."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from botocore.exceptions import ClientError, ReadTimeoutError

from tests.unit.memory_s3 import MemoryS3

Answer = TypeVar("Answer")

_BEGIN = 1000.0
_LONGEST = 300.0  # simulated seconds within which a scenario must end

# What can happen to a call:
#   unavailable  it still fails with 503 after all of the client's own retries
#   lost         it is carried out, and its reply is lost
#   retried      it is carried out, its reply is lost, and the client's own retry finds the object written (a PUT)
#   conflict     409: another conditional write of the key was in progress; nothing is written (a conditional PUT)
#   silent       it never returns
#   dies, dies_after   its caller dies before, or after, the call is carried out
Fault = Literal["unavailable", "lost", "retried", "conflict", "silent", "dies", "dies_after"]


class _Jumping(selectors.SelectSelector):
    """Does not wait: the clock jumps to the next moment at which something happens."""

    def __init__(self) -> None:
        super().__init__()
        self.now = _BEGIN

    def select(self, timeout: float | None = None) -> Any:
        events = super().select(0)
        if not events:
            if timeout is None:
                raise RuntimeError("deadlock: everything is waiting, and no timer is set")
            self.now += timeout
            if self.now > _BEGIN + _LONGEST:
                raise RuntimeError(f"the scenario has not ended after {_LONGEST:.0f} s")
        return events


class SimulatedLoop(asyncio.SelectorEventLoop):
    """An event loop in which time passes only by timers. Threads can't be used with it."""

    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


def simulate(story: Coroutine[Any, Any, Answer]) -> Answer:
    """Runs a coroutine in simulated time.

    Raises:
        RuntimeError: it waits for something that never happens.
    """
    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        return runner.run(story)


@dataclass(frozen=True)
class Call:
    """A call. `operation` is PUT, GET, LIST, or an operation of the launcher."""

    number: int
    operation: str
    key: str
    body: str = ""


class Failing:
    """Makes calls of an operation fail whose key contains `part`: the first `times` of them, or all."""

    def __init__(self, operation: str, part: str = "", times: int = 10**6, fault: Fault = "unavailable") -> None:
        self.operation, self.part, self.times, self.fault = operation, part, times, fault

    def __call__(self, call: Call) -> Fault | None:
        if call.operation != self.operation or self.part not in call.key or self.times == 0:
            return None
        self.times -= 1
        return self.fault


@dataclass
class AsyncMemoryS3:
    """Implements aiobotocore's S3 client on a MemoryS3.

    Attributes:
        fault: returns what happens to a call, or None.
        delay: returns how many seconds the next request, or its reply, takes.
        died: is set when the caller of a call has died.
    """

    s3: MemoryS3
    fault: Callable[[Call], Fault | None] = lambda _: None
    delay: Callable[[], float] = lambda: 0.0
    calls: list[Call] = field(default_factory=list)
    died: asyncio.Event = field(default_factory=asyncio.Event)

    async def call(self, operation: str, key: str, do: Callable[[], Answer], body: str = "") -> Answer:
        """Carries out a call, subject to `fault` and `delay`."""
        call = Call(len(self.calls) + 1, operation, key, body)
        self.calls.append(call)
        fault = self.fault(call)
        await asyncio.sleep(self.delay())
        if fault == "unavailable":
            raise _error("SlowDown", 503, operation)
        if fault == "conflict":
            raise _error("ConditionalRequestConflict", 409, operation)
        if fault == "silent":
            await asyncio.sleep(1e9)
        if fault == "dies":
            await self._die()
        answer = do()
        if fault == "dies_after":
            await self._die()
        await asyncio.sleep(self.delay())
        if fault == "lost":
            raise ReadTimeoutError(endpoint_url=key)
        if fault == "retried":
            raise _error("PreconditionFailed", 412, operation)
        return answer

    async def _die(self) -> None:
        self.died.set()
        await asyncio.Event().wait()

    async def get_object(self, Bucket: str, Key: str) -> dict[str, Any]:
        found = await self.call("GET", Key, lambda: self.s3.get_object(Bucket, Key))
        return {**found, "Body": _Body(found["Body"].read())}

    async def put_object(self, Bucket: str, Key: str, Body: bytes, **condition: str) -> dict[str, Any]:
        return await self.call(
            "PUT", Key, lambda: self.s3.put_object(Bucket, Key, Body, **condition), Body.decode(errors="replace")
        )

    def get_paginator(self, name: str) -> AsyncMemoryS3:
        assert name == "list_objects_v2"
        return self

    async def paginate(self, Bucket: str, Prefix: str, Delimiter: str = "") -> AsyncIterator[dict[str, Any]]:
        for page in await self.call("LIST", Prefix, lambda: list(self.s3.paginate(Bucket, Prefix, Delimiter))):
            yield page


@dataclass
class _Body:
    content: bytes

    async def __aenter__(self) -> _Body:
        return self

    async def __aexit__(self, *_: object) -> None: ...

    async def read(self) -> bytes:
        return self.content


def _error(code: str, status: int, operation: str) -> ClientError:
    answer: Any = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(answer, operation)
