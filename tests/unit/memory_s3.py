"""S3's conditional writes in memory, with a kill at any write: what the protocol's properties are driven against.

It refuses what the lake's bucket policy refuses: a record that is written without its condition.
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
    """The process died here; nothing catches it but the test."""


class MemoryS3:
    """The calls of boto3's S3 client that the lake makes, on a dictionary.

    `kill_at` counts writes down: at 0 the next write does not happen (`before`) or happens without a reply (`after`),
    and the caller dies. `interrupt` is called once, to let another actor come in between: before the next write, or,
    with `interrupt_at`, before that call from now on, reads included (0 is the next one). `has_policy`: it refuses what
    the lake's bucket policy refuses.
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
    """The header that a write of `key` lacks under the lake's bucket policy; empty where it may be written so."""
    if if_none_match is not None:
        return ""
    if _ONCE.match(key):
        return "If-None-Match"
    return "If-Match" if if_match is None and _SWAPPED.match(key) else ""


def _etag(body: bytes) -> str:
    return '"' + hashlib.md5(body, usedforsecurity=False).hexdigest() + '"'


def _error(code: str, status: int, message: str = "") -> ClientError:
    answer: Any = {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(answer, "PutObject")
