"""An in-memory S3 with conditional writes, for the protocol's property-based tests.

It can kill its caller at any write. Like the lake's bucket policy, it denies writing a record without the required
condition.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from fnmatch import translate
from typing import Any

from botocore.exceptions import ClientError

from busco.lake.layout import SWAPPED, WRITTEN_ONCE
from busco.lake.records import utc_now

_ONCE, _SWAPPED = (re.compile("|".join(map(translate, patterns))) for patterns in (WRITTEN_ONCE, SWAPPED))


class Killed(BaseException):
    """The process died here; only the test catches this exception."""


class MemoryS3:
    """Implements the calls of boto3's S3 client that the lake makes, on a dictionary.

    `kill_at` counts down with each write. When it is 0, the caller dies: before the next write, or, with `kill_after`,
    after the write but before the response. `interrupt` is called once so that another actor can intervene: before the
    next write or, with `interrupt_at`, before that call, counted from now on and including reads (0 is the next call).
    `has_policy`: requests that the lake's bucket policy denies are denied here too.
    """

    has_policy = True

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.stored_at: dict[str, datetime] = {}
        self.now: Callable[[], datetime] = utc_now
        self.kill_at: int | None = None
        self.kill_after = False
        self.interrupt: Any = None
        self.interrupt_at: int | None = None
        self.writes: list[str] = []

    def _called(self, write: bool = False) -> None:
        if self.interrupt is None:
            return
        due = write if self.interrupt_at is None else self.interrupt_at == 0
        if self.interrupt_at:
            self.interrupt_at -= 1
        if due:
            interrupt, self.interrupt, self.interrupt_at = self.interrupt, None, None
            interrupt()

    def get_object(self, Bucket: str, Key: str) -> dict[str, Any]:
        self._called()
        if Key not in self.objects:
            raise _error("NoSuchKey", 404)
        body = self.objects[Key]
        return {"Body": io.BytesIO(body), "ETag": _etag(body), "ContentLength": len(body)}

    def head_object(self, Bucket: str, Key: str) -> dict[str, Any]:
        self._called()
        if Key not in self.objects:
            raise _error("404", 404)
        return {"ETag": _etag(self.objects[Key]), "ContentLength": len(self.objects[Key])}

    def put_object(
        self,
        Bucket: str,
        Key: str,
        Body: bytes,
        ContentType: str = "",
        IfNoneMatch: str | None = None,
        IfMatch: str | None = None,
    ) -> dict[str, Any]:
        if self.has_policy and (missing := missing_condition(Key, IfNoneMatch, IfMatch)):
            raise _error("AccessDenied", 403, f"{Key} is written without {missing}")
        self._called(write=True)
        dying = self.kill_at == 0
        if self.kill_at is not None:
            self.kill_at -= 1
        if dying and not self.kill_after:
            self.kill_at = None
            raise Killed
        if IfNoneMatch == "*" and Key in self.objects:
            raise _error("PreconditionFailed", 412)
        if IfMatch is not None:
            if Key not in self.objects:
                raise _error("NoSuchKey", 404)
            if _etag(self.objects[Key]) != IfMatch:
                raise _error("PreconditionFailed", 412)
        self.objects[Key] = Body
        self.stored_at[Key] = self.now()
        self.writes.append(Key)
        if dying:
            self.kill_at = None
            raise Killed
        return {"ETag": _etag(Body)}

    def get_paginator(self, name: str) -> MemoryS3:
        if name == "list_object_versions":  # this bucket has no versions that a caller may see
            raise _error("AccessDenied", 403)
        assert name == "list_objects_v2"
        return self

    def paginate(self, Bucket: str, Prefix: str, Delimiter: str = "", StartAfter: str = "") -> Iterator[dict[str, Any]]:
        self._called()
        keys = sorted(key for key in self.objects if key.startswith(Prefix) and key > StartAfter)
        below = {key for key in keys if Delimiter and Delimiter in key[len(Prefix) :]}
        folders = sorted({key[len(Prefix) :].split(Delimiter)[0] for key in below})
        yield {
            "Contents": [
                {
                    "Key": key,
                    "ETag": _etag(self.objects[key]),
                    "Size": len(self.objects[key]),
                    "LastModified": self.stored_at[key].replace(microsecond=0),
                }
                for key in keys
                if key not in below
            ],
            "CommonPrefixes": [{"Prefix": f"{Prefix}{folder}{Delimiter}"} for folder in folders],
        }


class KeepingS3(MemoryS3):
    """Keeps the older versions of objects, and shows them to every caller, as a bucket with versioning does.

    `refused` are keys that nobody can read.
    """

    def __init__(self) -> None:
        super().__init__()
        # by key: each version's id, content (None for a delete marker) and time, oldest first
        self.kept: dict[str, list[tuple[str, bytes | None, datetime]]] = {}
        self.refused: set[str] = set()
        self._count = 0

    def put_object(self, Bucket: str, Key: str, Body: bytes, **more: Any) -> dict[str, Any]:
        answer = super().put_object(Bucket, Key, Body, **more)
        self._keep(Key, Body)
        return answer

    def delete_object(self, Bucket: str, Key: str, VersionId: str = "") -> None:
        if VersionId:
            self.kept[Key] = [one for one in self.kept[Key] if one[0] != VersionId]
            newest = self.kept[Key][-1][1] if self.kept[Key] else None
            self.objects.pop(Key, None)
            if newest is not None:
                self.objects[Key] = newest
        else:
            del self.objects[Key]
            self._keep(Key, None)

    def _keep(self, key: str, body: bytes | None) -> None:
        self._count += 1
        moment = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self._count)
        self.kept.setdefault(key, []).append((f"v{self._count}", body, moment))

    def get_object(self, Bucket: str, Key: str, VersionId: str = "") -> dict[str, Any]:
        if Key in self.refused:
            raise _error("AccessDenied", 403)
        if not VersionId:
            return super().get_object(Bucket, Key)
        for version, body, _ in self.kept.get(Key, []):
            if version == VersionId and body is not None:
                return {"Body": io.BytesIO(body), "ETag": _etag(body), "ContentType": ""}
        raise _error("NoSuchVersion", 404)

    def copy_object(self, Bucket: str, Key: str, CopySource: dict[str, str]) -> dict[str, Any]:
        body = self.get_object(**CopySource)["Body"].read()
        return {"CopyObjectResult": self.put_object(Bucket, Key, body)}

    def get_paginator(self, name: str) -> Any:
        return _Versions(self) if name == "list_object_versions" else super().get_paginator(name)


class _Versions:
    def __init__(self, s3: KeepingS3) -> None:
        self.s3 = s3

    def paginate(self, Bucket: str, Prefix: str) -> list[dict[str, Any]]:
        page: dict[str, Any] = {"Versions": [], "DeleteMarkers": []}
        for key in sorted(self.s3.kept):
            for version, body, moment in reversed(self.s3.kept[key] if key.startswith(Prefix) else []):
                one = {"Key": key, "VersionId": version, "LastModified": moment}
                one["IsLatest"] = version == self.s3.kept[key][-1][0]
                if body is None:
                    page["DeleteMarkers"].append(one)
                else:
                    page["Versions"].append({**one, "ETag": _etag(body), "Size": len(body)})
        return [page]


class CountingS3(MemoryS3):
    """Counts requests other than listings, and written bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.requests, self.written = 0, 0

    def get_object(self, Bucket: str, Key: str) -> dict[str, Any]:
        self.requests += 1
        return super().get_object(Bucket, Key)

    def put_object(self, Bucket: str, Key: str, Body: bytes, **more: Any) -> dict[str, Any]:
        self.requests += 1
        self.written += len(Body)
        return super().put_object(Bucket, Key, Body, **more)

    def cost(self, act: Callable[[], Any]) -> tuple[int, int]:
        """Returns the requests that `act` makes and the bytes that it writes."""
        self.requests, self.written = 0, 0
        act()
        return self.requests, self.written


def missing_condition(key: str, if_none_match: str | None, if_match: str | None) -> str:
    """Returns the header that the lake's bucket policy requires for a write and that is missing, or an empty string."""
    if if_none_match is not None:
        return ""
    if _ONCE.match(key):
        return "If-None-Match"
    return "If-Match" if if_match is None and _SWAPPED.match(key) else ""


def _etag(body: bytes) -> str:
    return '"' + hashlib.md5(body, usedforsecurity=False).hexdigest() + '"'


def _error(code: str, status: int, message: str = "") -> ClientError:
    response: Any = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(response, "PutObject")
