"""Provides non-blocking AWS clients to triggers, one for each service and event loop."""

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

# The maximum number of concurrent S3 calls in an event loop. Signing a request and parsing its response take a
# millisecond or two of the loop's time: a thousand tasks that all call S3 in one iteration would block the loop for
# seconds.
_AT_ONCE = 6


class Conflict(Exception):
    """The condition of a conditional write failed: another process has written the object."""


# One client for each service and event loop, kept for the triggerer's lifetime: creating one takes a third of a second,
# during which no other trigger makes progress.
_clients: dict[tuple[str, int], Any] = {}
_gates: dict[int, asyncio.Semaphore] = {}
_queued: dict[tuple[int, Hashable], asyncio.Task[Any]] = {}  # requests that have not been sent yet
_in_flight: dict[tuple[int, Hashable], asyncio.Task[Any]] = {}  # requests that have been sent
_LOADER = botocore.loaders.create_loader()


async def shared(what: Hashable, ask: Callable[[], Awaitable[Answer]]) -> Answer:
    """Coalesces concurrent identical requests: all callers that arrive before a request is sent share its response.

    The next request is sent once the previous one has completed. A caller never gets the response to a request that was
    sent before the call.
    """
    key = (id(asyncio.get_running_loop()), what)

    async def answer() -> Answer:
        if key in _in_flight:
            await asyncio.wait([_in_flight[key]])
        # callers that arrive from here on need a new request: this one may miss changes made after it is sent
        _in_flight[key] = _queued.pop(key)
        try:
            return await ask()
        finally:
            if _in_flight[key] is asyncio.current_task():
                del _in_flight[key]

    if key not in _queued:
        _queued[key] = asyncio.create_task(answer())
    found: Answer = await asyncio.shield(_queued[key])
    return found


async def async_client(service: str, settings: Settings) -> Any:
    """Returns this event loop's client for a service, with the platform's retries and timeouts."""
    key = (service, id(asyncio.get_running_loop()))
    if key not in _clients:
        await shared(("client", service), lambda: _make(service, settings))
    return _clients[key]


async def _make(service: str, settings: Settings) -> None:
    key = (service, id(asyncio.get_running_loop()))
    if key not in _clients:
        # load the service's model, a megabyte of JSON, in a thread, so that the client finds it in the loader's cache
        await asyncio.to_thread(_read_description, service)
        session = get_session()
        session.register_component("data_loader", _LOADER)
        if service == "s3":
            # nothing here uses the timestamps in S3's responses, and parsing them takes 3/4 of a listing's time
            session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=str)
        context = session.create_client(
            service,
            region_name=settings.region,
            endpoint_url=settings.endpoint_url,
            config=AioConfig(**CLIENT_CONFIG),
        )
        _clients[key] = await context.__aenter__()
        # the objects that Airflow has loaded by now stay in memory for good; scanning them in each full garbage
        # collection would block the loop for 0.1 s
        gc.freeze()


async def forget_clients() -> None:
    """Closes this event loop's clients.

    Code that runs its own event loop must call this before the loop ends, since a later loop may have the same id.
    """
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
    """Provides access to the lake bucket's objects through this event loop's client."""
    gate = _gates.setdefault(id(asyncio.get_running_loop()), asyncio.Semaphore(_AT_ONCE))
    return AsyncObjects(settings, await async_client("s3", settings), gate)


@dataclass
class AsyncObjects:
    """Makes the few S3 calls that triggers need, without blocking."""

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
        """Creates an object if `etag` is None; otherwise, replaces the object if it still has that ETag.

        The call can be repeated after a failure: if an earlier write succeeded but its response was lost, the write is
        recognised by its content.

        Raises:
            Conflict: the object already exists or no longer has that ETag, and its content is not `body`.
            ClientError: S3 refused the write for another reason, for example with 409 ConditionalRequestConflict:
                another conditional write or a delete was in progress, so it is unknown whether the object exists (S3
                user guide, "Conditional writes").
        """
        condition = {"IfMatch": etag} if etag else {"IfNoneMatch": "*"}
        try:
            async with self.gate:
                await self.s3.put_object(Bucket=self.settings.lake_bucket, Key=key, Body=body.encode(), **condition)
            return
        except ClientError as error:
            # if the key does not exist, S3 responds to If-Match with 404
            if error.response["Error"]["Code"] not in ("PreconditionFailed", "412", "NoSuchKey", "404"):
                raise
        found = await self.get(key)
        if found is None or found[0] != body.encode():
            raise Conflict(key)

    async def etags(self, prefix: str, delimiter: str = "") -> dict[str, str]:
        """Returns the ETags of the objects under a prefix; with the delimiter `/`, those in subfolders are left out."""
        found: dict[str, str] = {}
        async for page in self._pages(prefix, delimiter):
            found.update({item["Key"]: item["ETag"] for item in page.get("Contents", [])})
        return found

    async def folders(self, prefix: str) -> list[str]:
        """Returns the names of the folders directly under a prefix, which must end with a slash."""
        return [
            item["Prefix"][len(prefix) :].rstrip("/")
            async for page in self._pages(prefix, "/")
            for item in page.get("CommonPrefixes", [])
        ]

    def _pages(self, prefix: str, delimiter: str) -> Any:
        return self.s3.get_paginator("list_objects_v2").paginate(
            Bucket=self.settings.lake_bucket, Prefix=prefix, Delimiter=delimiter
        )
