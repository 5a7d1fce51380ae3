"""Reads and writes a bucket's objects. Conditional writes are the only form of locking that the lake uses."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from botocore.exceptions import ClientError
from pydantic import BaseModel

from busco.errors import BuscoError
from busco.lake.layout import fitting

Record = TypeVar("Record", bound=BaseModel)

# S3 responds with 409 ConditionalRequestConflict while another conditional write to the key is in progress; the client
# should retry (S3 User Guide, "Conditional writes").
_CONFLICT_TRIES = 20
_CONFLICT_WAIT = 0.05


class AlreadyExists(Exception):
    """`create` found an existing object with that key but different content."""


class Moved(Exception):
    """`swap` found that the object has changed since it was read."""


@dataclass(frozen=True)
class Stored:
    """An object as read: its content, and the ETag to pass to `swap`."""

    body: bytes
    etag: str

    def parse(self, model: type[Record]) -> Record:
        return model.model_validate_json(self.body)


class ObjectStore:
    """The objects of one bucket.

    Args:
        client: a boto3 S3 client.
        bucket: the bucket's name.

    All methods raise botocore's `ClientError` for S3 errors that they don't handle. Writes raise `BuscoError` if the
    key is too long for S3. If a write is retried because its response was lost, an object that the first attempt wrote
    is recognized by its content, because every object that is written to a contended key contains a unique id.
    """

    def __init__(self, client: Any, bucket: str) -> None:
        self.client = client
        self.bucket = bucket

    def url(self, key: str) -> str:
        return f"s3://{self.bucket}/{key}"

    def key(self, url: str) -> str:
        """Returns the key in an object's URL.

        Raises:
            BuscoError: the URL points to another bucket.
        """
        prefix = self.url("")
        if not url.startswith(prefix):
            raise BuscoError(f"{url} is not in the lake bucket {self.bucket}")
        return url[len(prefix) :]

    def occupied(self, key: str) -> BuscoError:
        """Returns the error for an object that already exists, but with different content than its key determines.

        This is never a lost reply or a concurrent write of the same object: something else has written it.
        """
        return BuscoError(
            f"{self.url(key)} already exists, but with different content",
            "use S3's access log to find out what wrote it; if nothing needs it, have an administrator delete it",
        )

    def missing(self, keys: Collection[str]) -> list[str]:
        """Returns the keys for which no object exists, in the given order, using up to 16 threads."""
        with ThreadPoolExecutor(max_workers=16) as pool:
            return [key for key, exists in zip(keys, pool.map(self._exists, keys), strict=True) if not exists]

    def _exists(self, key: str) -> bool:
        try:
            self.client.head_object(Bucket=self.bucket, Key=key)
        except ClientError as error:
            if _code(error) in ("NoSuchKey", "404"):
                return False
            raise
        return True

    def get(self, key: str, most: int | None = None) -> Stored | None:
        """Returns the object, or None if it does not exist, or if it has more than `most` bytes."""
        try:
            answer = self.client.get_object(Bucket=self.bucket, Key=key)
        except ClientError as error:
            if _code(error) in ("NoSuchKey", "404"):
                return None
            if _code(error) == "NoSuchBucket":
                raise BuscoError(f"the bucket {self.bucket} does not exist", "deploy deploy/aws/lake.yaml") from error
            raise
        if most is not None and answer["ContentLength"] > most:
            answer["Body"].close()
            return None
        return Stored(answer["Body"].read(), answer["ETag"])

    def read(self, key: str, model: type[Record]) -> Record | None:
        """Returns the parsed record under `key`, or None if it does not exist."""
        stored = self.get(key)
        return None if stored is None else stored.parse(model)

    def read_many(self, keys: list[str], model: type[Record]) -> list[Record]:
        """Returns the records under `keys`, in the same order, using up to 16 threads.

        Raises:
            BuscoError: one of the records does not exist.
        """
        with ThreadPoolExecutor(max_workers=16) as pool:
            found = list(pool.map(lambda key: self.read(key, model), keys))
        for key, record in zip(keys, found, strict=True):
            if record is None:
                raise BuscoError(f"a lake record is missing: {self.url(key)}")
        return [record for record in found if record is not None]

    def create(self, key: str, body: bytes | BaseModel, content_type: str = "application/json") -> str:
        """Writes an object that must not exist yet (If-None-Match: *) and returns its ETag.

        Raises:
            AlreadyExists: the object already exists with different content.
        """
        data = _bytes(body)
        for _ in range(_CONFLICT_TRIES):
            try:
                return self._conditional(key, data, content_type, IfNoneMatch="*")
            except Moved:
                found = self.get(key)
            if found is not None and found.body == data:
                return found.etag
            if found is not None:
                break
            # The object was deleted in the meantime.
        raise AlreadyExists(key)

    def swap(self, key: str, body: bytes | BaseModel, etag: str, content_type: str = "application/json") -> str:
        """Replaces the object if its ETag is still `etag` (If-Match) and returns the new ETag.

        Raises:
            Moved: the object has changed or no longer exists.
        """
        data = _bytes(body)
        try:
            return self._conditional(key, data, content_type, IfMatch=etag)
        except Moved:
            found = self.get(key)
            if found is not None and found.body == data:
                return found.etag
            raise

    def put(self, key: str, body: bytes | BaseModel, content_type: str = "application/json") -> None:
        """Writes an object unconditionally; only for keys with a single writer."""
        self.client.put_object(
            Bucket=self.bucket, Key=fitting(key, "object", key), Body=_bytes(body), ContentType=content_type
        )

    def purge(self, key: str, whole: bool = False) -> None:
        """Deletes all noncurrent versions of an object in a bucket with versioning.

        Args:
            whole: also delete the current version.
        """
        pages = self.client.get_paginator("list_object_versions").paginate(Bucket=self.bucket, Prefix=key)
        found = [one for page in pages for kind in ("Versions", "DeleteMarkers") for one in page.get(kind, [])]
        for one in found:
            if one["Key"] == key and (whole or not one["IsLatest"]):
                self.client.delete_object(Bucket=self.bucket, Key=key, VersionId=one["VersionId"])

    def keys(self, prefix: str) -> Iterator[str]:
        """Yields all keys that start with `prefix`, in order."""
        for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix):
            for item in page.get("Contents", []):
                yield item["Key"]

    def keys_of_versions(self, prefix: str) -> set[str]:
        """Returns all keys that start with `prefix`, with those of deleted objects that still have versions."""
        pages = self.client.get_paginator("list_object_versions").paginate(Bucket=self.bucket, Prefix=prefix)
        return {one["Key"] for page in pages for kind in ("Versions", "DeleteMarkers") for one in page.get(kind, [])}

    def modified(self, prefix: str, delimiter: str = "") -> dict[str, datetime]:
        """Returns when each object whose key starts with `prefix` was stored (UTC, whole seconds), by key.

        Args:
            delimiter: `/` to include only the objects directly below `prefix`.
        """
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=prefix, Delimiter=delimiter
        )
        return {item["Key"]: item["LastModified"] for page in pages for item in page.get("Contents", [])}

    def sizes(self, prefix: str) -> dict[str, tuple[str, int]]:
        """Returns the ETag and the size in bytes of each object whose key starts with `prefix`, by key."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        return {item["Key"]: (item["ETag"], item["Size"]) for page in pages for item in page.get("Contents", [])}

    def last_modified(self, prefix: str) -> datetime | None:
        """Returns when the newest object whose key starts with `prefix` was written (UTC); None if there is none."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        return max((item["LastModified"] for page in pages for item in page.get("Contents", [])), default=None)

    def etags(self, prefix: str, written: Mapping[str, int]) -> dict[str, str]:
        """Returns the ETags of objects that another client has just written below `prefix`, by key, from one listing.

        Args:
            written: the objects' keys and sizes in bytes, as that client reported them.

        Raises:
            BuscoError: one of the objects is missing or has a different size, so something else has changed it.
        """
        found = self.sizes(prefix) if written else {}
        for key, size in written.items():
            if key not in found or found[key][1] != size:
                has = f"{found[key][1]:,} bytes" if key in found else "nothing"
                raise BuscoError(
                    f"{self.url(key)} was written with {size:,} bytes, but S3 now has {has} there",
                    "use S3's access log to find out what else writes to the lake bucket, then clear the task",
                )
        return {key: found[key][0] for key in written}

    def folders(self, prefix: str, after: str = "") -> list[str]:
        """Returns the names of the folders directly below `prefix`, which must end with a slash.

        Args:
            after: only names that come after it.
        """
        start = {"StartAfter": f"{prefix}{after}"} if after else {}
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=prefix, Delimiter="/", **start
        )
        return [item["Prefix"][len(prefix) :].rstrip("/") for page in pages for item in page.get("CommonPrefixes", [])]

    def _conditional(self, key: str, data: bytes, content_type: str, **condition: str) -> str:
        fitting(key, "object", key)
        for attempt in range(_CONFLICT_TRIES):
            try:
                answer = self.client.put_object(
                    Bucket=self.bucket, Key=key, Body=data, ContentType=content_type, **condition
                )
                return str(answer["ETag"])
            except ClientError as error:
                if _code(error) in ("PreconditionFailed", "412"):
                    raise Moved(key) from error
                # If-Match on a key that does not exist returns 404.
                if _code(error) in ("NoSuchKey", "404"):
                    raise Moved(key) from error
                if _code(error) not in ("ConditionalRequestConflict", "409") or attempt == _CONFLICT_TRIES - 1:
                    raise
                time.sleep(_CONFLICT_WAIT)
        raise AssertionError("unreachable")


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _bytes(body: bytes | BaseModel) -> bytes:
    return body if isinstance(body, bytes) else body.model_dump_json(indent=1).encode()


def canonical_json(value: object) -> bytes:
    """Returns JSON with sorted keys and no spaces, so that equal values have the same bytes and the same hash."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str).encode()
