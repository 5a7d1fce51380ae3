"""An in-memory S3 with conditional writes, for the protocol's property-based tests.

It can kill its caller at any write. Like the lake's bucket policy, it denies writing a record without the required
condition.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Iterator
from datetime import datetime
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
        return {"Body": io.BytesIO(body), "ETag": _etag(body)}

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
        assert name == "list_objects_v2"
        return self

    def paginate(self, Bucket: str, Prefix: str, Delimiter: str = "") -> Iterator[dict[str, Any]]:
        self._called()
        keys = sorted(key for key in self.objects if key.startswith(Prefix))
        below = [key for key in keys if Delimiter and Delimiter in key[len(Prefix) :]]
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
                if key not in set(below)
            ],
            "CommonPrefixes": [{"Prefix": f"{Prefix}{folder}{Delimiter}"} for folder in folders],
        }


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
