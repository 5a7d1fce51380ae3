"""One bucket with conditional writes: all the locking that the lake has."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from botocore.exceptions import ClientError
from pydantic import BaseModel

from busco.errors import BuscoError
from busco.lake.layout import fitting

Record = TypeVar("Record", bound=BaseModel)

# S3 answers 409 ConditionalRequestConflict while another conditional write of the key is under way, and asks
# for a retry (S3 user guide, "Conditional writes").
_CONFLICT_TRIES = 20
_CONFLICT_WAIT = 0.05


class AlreadyExists(Exception):
    """`create` found an object of that key with other content."""


class Moved(Exception):
    """`swap` found the object changed since it was read."""


@dataclass(frozen=True)
class Stored:
    """An object as read: its bytes and the ETag that `swap` takes."""

    body: bytes
    etag: str

    def parse(self, model: type[Record]) -> Record:
        return model.model_validate_json(self.body)


class ObjectStore:
    """The objects of one bucket.

    Args:
        client: a boto3 S3 client.
        bucket: the bucket's name.

    Every method raises botocore's `ClientError` for what S3 refuses otherwise; a write raises `BuscoError` for a key
    that is longer than S3 takes. A write whose reply was lost and
    that was retried is recognised by its content: whatever writes a contended key puts an id of its own into it.
    """

    def __init__(self, client: Any, bucket: str) -> None:
        self.client = client
        self.bucket = bucket

    def url(self, key: str) -> str:
        return f"s3://{self.bucket}/{key}"

    def get(self, key: str) -> Stored | None:
        """The object, or None where there is none."""
        try:
            answer = self.client.get_object(Bucket=self.bucket, Key=key)
        except ClientError as error:
            if _code(error) in ("NoSuchKey", "404"):
                return None
            if _code(error) == "NoSuchBucket":
                raise BuscoError(f"the bucket {self.bucket} does not exist", "deploy deploy/aws/lake.yaml") from error
            raise
        return Stored(answer["Body"].read(), answer["ETag"])

    def read(self, key: str, model: type[Record]) -> Record | None:
        """The record under `key`, parsed, or None where there is none."""
        stored = self.get(key)
        return None if stored is None else stored.parse(model)

    def read_many(self, keys: list[str], model: type[Record]) -> list[Record]:
        """The records under `keys`, in their order, read by up to 16 threads.

        Raises:
            BuscoError: one of them does not exist.
        """
        with ThreadPoolExecutor(max_workers=16) as pool:
            found = list(pool.map(lambda key: self.read(key, model), keys))
        for key, record in zip(keys, found, strict=True):
            if record is None:
                raise BuscoError(f"a record of the lake is missing: {self.url(key)}")
        return [record for record in found if record is not None]

    def create(self, key: str, body: bytes | BaseModel, content_type: str = "application/json") -> str:
        """Writes an object that must not exist yet (If-None-Match: *) and gives its ETag.

        Raises:
            AlreadyExists: there is one, with other content.
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
            # it was deleted in between
        raise AlreadyExists(key)

    def swap(self, key: str, body: bytes | BaseModel, etag: str, content_type: str = "application/json") -> str:
        """Replaces the object if it is still the one with `etag` (If-Match) and gives the new ETag.

        Raises:
            Moved: it changed or is gone.
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
        """Writes an object whatever was there: only for keys that one writer owns."""
        self.client.put_object(
            Bucket=self.bucket, Key=fitting(key, "object", key), Body=_bytes(body), ContentType=content_type
        )

    def purge(self, key: str, whole: bool = False) -> None:
        """Deletes the versions of an object that a bucket with versions keeps of it, but the one that is read.

        Args:
            whole: that one too.
        """
        pages = self.client.get_paginator("list_object_versions").paginate(Bucket=self.bucket, Prefix=key)
        found = [one for page in pages for kind in ("Versions", "DeleteMarkers") for one in page.get(kind, [])]
        for one in found:
            if one["Key"] == key and (whole or not one["IsLatest"]):
                self.client.delete_object(Bucket=self.bucket, Key=key, VersionId=one["VersionId"])

    def keys(self, prefix: str) -> Iterator[str]:
        """All keys that begin with `prefix`, in their order."""
        for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix):
            for item in page.get("Contents", []):
                yield item["Key"]

    def modified(self, prefix: str, delimiter: str = "") -> dict[str, datetime]:
        """When each object whose key begins with `prefix` was stored (UTC, whole seconds), by key.

        Args:
            delimiter: with `/`, only the objects directly below `prefix`.
        """
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=prefix, Delimiter=delimiter
        )
        return {item["Key"]: item["LastModified"] for page in pages for item in page.get("Contents", [])}

    def sizes(self, prefix: str) -> dict[str, tuple[str, int]]:
        """ETag and bytes of each object whose key begins with `prefix`, by key."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        return {item["Key"]: (item["ETag"], item["Size"]) for page in pages for item in page.get("Contents", [])}

    def etags(self, prefix: str, written: Mapping[str, int]) -> dict[str, str]:
        """The ETags of objects that another client has just written below `prefix`, by key: one LIST.

        Args:
            written: their keys and bytes, as that client has them.

        Raises:
            BuscoError: S3 does not have one of them, or has it with another size: something has written over it.
        """
        found = self.sizes(prefix) if written else {}
        for key, size in written.items():
            if key not in found or found[key][1] != size:
                has = f"{found[key][1]:,} bytes" if key in found else "nothing"
                raise BuscoError(
                    f"{self.url(key)} was written with {size:,} bytes, and S3 has {has} there",
                    "something else writes to the lake bucket: find it in S3's access log, then clear the task",
                )
        return {key: found[key][0] for key in written}

    def folders(self, prefix: str) -> list[str]:
        """The names of the folders right below `prefix` (which ends with a slash)."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix, Delimiter="/")
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
                # If-Match on a key that does not exist is a 404
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
    """JSON with sorted keys and no spaces: the same value gives the same bytes, for hashing."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str).encode()
