"""AWS as triggers call it: without blocking, one client for each service and event loop."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore.exceptions import ClientError

from busco.aws import CLIENT_CONFIG
from busco.settings import Settings


class Conflict(Exception):
    """A conditional write lost."""


# One client for each service and event loop, that is for the triggerer's life: making one costs a third of a second, in
# which no other trigger moves.
_clients: dict[tuple[str, int], Any] = {}


async def async_client(service: str, settings: Settings) -> Any:
    """This event loop's client of a service, with the platform's retries and time-outs."""
    key = (service, id(asyncio.get_running_loop()))
    if key not in _clients:
        context = get_session().create_client(
            service,
            region_name=settings.region,
            endpoint_url=settings.endpoint_url,
            config=AioConfig(**CLIENT_CONFIG),
        )
        made = await context.__aenter__()
        _clients.setdefault(key, made)
    return _clients[key]


async def objects_of(settings: Settings) -> AsyncObjects:
    """The lake bucket, over this event loop's client."""
    return AsyncObjects(settings, await async_client("s3", settings))


@dataclass
class AsyncObjects:
    """The few S3 calls that triggers make, without blocking."""

    settings: Settings
    s3: Any

    async def get(self, key: str) -> tuple[bytes, str] | None:
        try:
            answer = await self.s3.get_object(Bucket=self.settings.lake_bucket, Key=key)
        except ClientError as error:
            if error.response["Error"]["Code"] in ("NoSuchKey", "404"):
                return None
            raise
        async with answer["Body"] as body:
            return await body.read(), answer["ETag"]

    async def put(self, key: str, body: str, etag: str | None) -> None:
        """Creates (etag None) or swaps an object.

        Raises:
            Conflict: somebody else was first.
        """
        condition = {"IfMatch": etag} if etag else {"IfNoneMatch": "*"}
        try:
            await self.s3.put_object(Bucket=self.settings.lake_bucket, Key=key, Body=body.encode(), **condition)
        except ClientError as error:
            if error.response["Error"]["Code"] in ("PreconditionFailed", "412", "ConditionalRequestConflict"):
                raise Conflict(key) from error
            raise

    async def etags(self, prefix: str) -> dict[str, str]:
        found: dict[str, str] = {}
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=self.settings.lake_bucket, Prefix=prefix)
        async for page in pages:
            found.update({item["Key"]: item["ETag"] for item in page.get("Contents", [])})
        return found
