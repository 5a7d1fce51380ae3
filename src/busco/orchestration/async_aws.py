"""AWS as triggers call it: without blocking, one client for each service and event loop."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Any, TypeVar

import botocore.loaders
import botocore.session
from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore.exceptions import ClientError

from busco.aws import CLIENT_CONFIG
from busco.settings import Settings

Answer = TypeVar("Answer")

# Calls to S3 that are under way at once on one event loop. Each costs a millisecond or two of it, to sign and to read
# the answer: a thousand tasks that all begin to ask in one turn of the loop would hold it for seconds.
_AT_ONCE = 6


class Conflict(Exception):
    """The condition of a conditional write does not hold: somebody else has written the object."""


# One client for each service and event loop, that is for the triggerer's life: making one costs a third of a second, in
# which no other trigger moves.
_clients: dict[tuple[str, int], Any] = {}
_gates: dict[int, asyncio.Semaphore] = {}
_asked: dict[tuple[int, Hashable], asyncio.Task[Any]] = {}  # questions that wait
_put: dict[tuple[int, Hashable], asyncio.Task[Any]] = {}  # and those that are put
_LOADER = botocore.loaders.create_loader()


async def shared(what: Hashable, ask: Callable[[], Awaitable[Answer]]) -> Answer:
    """The answer to a question that many tasks ask, asked once for all who come before it is put.

    It is put when the answer to the one before is there; nobody gets an answer that is older than the question.
    """
    key = (id(asyncio.get_running_loop()), what)

    async def answer() -> Answer:
        if key in _put:
            await asyncio.wait([_put[key]])
        # whoever comes from here on may want to know what has changed since
        _put[key] = _asked.pop(key)
        try:
            return await ask()
        finally:
            if _put[key] is asyncio.current_task():
                del _put[key]

    if key not in _asked:
        _asked[key] = asyncio.create_task(answer())
    found: Answer = await asyncio.shield(_asked[key])
    return found


async def async_client(service: str, settings: Settings) -> Any:
    """This event loop's client of a service, with the platform's retries and time-outs."""
    key = (service, id(asyncio.get_running_loop()))
    if key not in _clients:
        await shared(("client", service), lambda: _make(service, settings))
    return _clients[key]


async def _make(service: str, settings: Settings) -> None:
    key = (service, id(asyncio.get_running_loop()))
    if key not in _clients:
        # the service's description, a megabyte of JSON, is read in a thread; the client then finds it read
        await asyncio.to_thread(_read_description, service)
        session = get_session()
        session.register_component("data_loader", _LOADER)
        if service == "s3":
            # no time in S3's answers is read here, and to parse them is three quarters of a listing's cost
            session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=str)
        context = session.create_client(
            service,
            region_name=settings.region,
            endpoint_url=settings.endpoint_url,
            config=AioConfig(**CLIENT_CONFIG),
        )
        _clients[key] = await context.__aenter__()
        # what Airflow has loaded by now stays: each full collection that goes through it would hold the loop for 0.1 s
        gc.freeze()


async def forget_clients() -> None:
    """Closes this event loop's clients, for whoever runs a loop of his own: a later one may have its identity."""
    loop = id(asyncio.get_running_loop())
    for key in [key for key in _clients if key[1] == loop]:
        await _clients.pop(key).close()
    _gates.pop(loop, None)


def _read_description(service: str) -> None:
    bare = botocore.session.Session()
    bare.register_component("data_loader", _LOADER)
    bare.get_service_model(service)
    _LOADER.load_service_model(service, "endpoint-rule-set-1")


async def objects_of(settings: Settings) -> AsyncObjects:
    """The lake bucket, over this event loop's client."""
    gate = _gates.setdefault(id(asyncio.get_running_loop()), asyncio.Semaphore(_AT_ONCE))
    return AsyncObjects(settings, await async_client("s3", settings), gate)


@dataclass
class AsyncObjects:
    """The few S3 calls that triggers make, without blocking."""

    settings: Settings
    s3: Any
    gate: asyncio.Semaphore

    async def get(self, key: str) -> tuple[bytes, str] | None:
        async with self.gate:
            try:
                answer = await self.s3.get_object(Bucket=self.settings.lake_bucket, Key=key)
            except ClientError as error:
                if error.response["Error"]["Code"] in ("NoSuchKey", "404"):
                    return None
                raise
            async with answer["Body"] as body:
                return await body.read(), answer["ETag"]

    async def put(self, key: str, body: str, etag: str | None) -> None:
        """Creates (etag None) or swaps an object. It may be repeated where it fails: a write whose reply was lost is
        recognised by its content.

        Raises:
            Conflict: the object exists, or has another ETag, and other content.
            ClientError: S3 refuses otherwise. 409 ConditionalRequestConflict is one of these: another conditional write
                was under way or a delete came in between, which does not say whether the object exists (S3 user guide,
                "Conditional writes").
        """
        condition = {"IfMatch": etag} if etag else {"IfNoneMatch": "*"}
        try:
            async with self.gate:
                await self.s3.put_object(Bucket=self.settings.lake_bucket, Key=key, Body=body.encode(), **condition)
            return
        except ClientError as error:
            # If-Match on a key that does not exist is a 404
            if error.response["Error"]["Code"] not in ("PreconditionFailed", "412", "NoSuchKey", "404"):
                raise
        found = await self.get(key)
        if found is None or found[0] != body.encode():
            raise Conflict(key)

    async def etags(self, prefix: str, delimiter: str = "") -> dict[str, str]:
        """The ETags of the objects below a prefix; only of those right below it where `delimiter` is a slash."""
        found: dict[str, str] = {}
        async for page in self._pages(prefix, delimiter):
            found.update({item["Key"]: item["ETag"] for item in page.get("Contents", [])})
        return found

    async def folders(self, prefix: str) -> list[str]:
        """The names of the folders right below a prefix, which ends with a slash."""
        return [
            item["Prefix"][len(prefix) :].rstrip("/")
            async for page in self._pages(prefix, "/")
            for item in page.get("CommonPrefixes", [])
        ]

    def _pages(self, prefix: str, delimiter: str) -> Any:
        return self.s3.get_paginator("list_objects_v2").paginate(
            Bucket=self.settings.lake_bucket, Prefix=prefix, Delimiter=delimiter
        )
