"""Reads S3's event notifications from the messages of a queue.

S3 sends them directly to the queue, or through an SNS topic or an EventBridge rule that wraps them (S3 User Guide,
"Event message structure" and "EventBridge event message structure"). They arrive at least once, in any order, and
mostly within seconds.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import unquote_plus

from busco.lake.records import Arrival
from busco.text import printable

_CREATED = "ObjectCreated:"
# How many reasons for a dead letter are shown, and how much of each: SQS accepts 256 KiB for a message in all.
_REASONS, _REASON_LENGTH = 5, 300
# OverflowError: Python reads a size of 1e400 as infinity, which has no int
_INVALID = (KeyError, TypeError, ValueError, AttributeError, OverflowError)


@dataclass(frozen=True)
class Notification:
    """What a message contains.

    Attributes:
        arrivals: the objects of the bucket that were created.
        foreign: why parts of the message, or all of it, are not notifications of the bucket; one sentence each.

    Events that need no action are in neither: removed objects, changed tags, S3's test event.
    """

    arrivals: tuple[Arrival, ...] = ()
    foreign: tuple[str, ...] = ()


def read(body: str, bucket: str) -> Notification:
    """Returns what a message contains; a part that is not understood does not affect the others.

    Args:
        body: the message's body, in one of the three forms.
        bucket: the landing bucket; events of other buckets are foreign.
    """
    try:
        found = _read(body, bucket, wrapped=False)
    except Exception as error:  # anybody may have written the message, for example JSON that is nested too deeply
        return Notification(foreign=(f"it can't be read: {type(error).__name__}",))
    if not found.foreign:
        return found
    reasons = list(dict.fromkeys(found.foreign))
    more = f"and {len(reasons) - _REASONS:,} more reasons"
    shown = [printable(reason)[:_REASON_LENGTH] for reason in reasons[:_REASONS]]
    return replace(found, foreign=tuple([*shown, more] if len(reasons) > _REASONS else shown))


def _read(body: str, bucket: str, wrapped: bool) -> Notification:
    try:
        content = json.loads(body)
    except ValueError:
        return Notification(foreign=("it is not JSON",))
    if not isinstance(content, dict):
        return Notification(foreign=("it is not a JSON object",))
    if content.get("Type") == "Notification" and isinstance(content.get("Message"), str) and not wrapped:
        return _read(content["Message"], bucket, wrapped=True)
    if content.get("Event") == "s3:TestEvent":
        return Notification()
    if isinstance(content.get("Records"), list):
        return _joined(_record(record, bucket) for record in content["Records"])
    if content.get("source") == "aws.s3" and isinstance(content.get("detail"), dict):
        return _eventbridge(content, bucket)
    return Notification(foreign=("it is not an S3 event notification, whether sent directly or by SNS or EventBridge",))


def _joined(parts: Iterable[Notification]) -> Notification:
    arrivals: list[Arrival] = []
    foreign: list[str] = []
    for part in parts:
        arrivals += part.arrivals
        foreign += part.foreign
    return Notification(tuple(arrivals), tuple(foreign))


def _record(record: Any, bucket: str) -> Notification:
    """Reads one of the records in S3's own form. Its key is URL-encoded; a space is `+`."""
    try:
        # a newer version within the same major one only adds fields
        if record["eventSource"] != "aws:s3" or str(record["eventVersion"]).split(".")[0] != "2":
            return Notification(foreign=("a record is not an S3 event of version 2.x",))
        name = str(record["eventName"]).removeprefix("s3:")
        if not name.startswith(_CREATED):
            return Notification()
        found, item = record["s3"]["bucket"]["name"], record["s3"]["object"]
        key = unquote_plus(item["key"], errors="strict")
        return _arrival(bucket, found, key, item, etag="eTag", version="versionId")
    except _INVALID as error:
        return Notification(foreign=(f"a field of the S3 event is missing or invalid: {error!r}",))


def _eventbridge(content: Mapping[str, Any], bucket: str) -> Notification:
    """Reads an event in EventBridge's form. Its key is not encoded."""
    if content.get("detail-type") != "Object Created":
        return Notification()
    try:
        item = content["detail"]["object"]
        found = content["detail"]["bucket"]["name"]
        return _arrival(bucket, found, str(item["key"]), item, etag="etag", version="version-id")
    except _INVALID as error:
        return Notification(foreign=(f"a field of the S3 event is missing or invalid: {error!r}",))


def _arrival(bucket: str, found: str, key: str, item: Mapping[str, Any], etag: str, version: str) -> Notification:
    if found != bucket:
        return Notification(foreign=(f"it is about the bucket {found}",))
    key.encode()  # fails for an unpaired surrogate
    one = Arrival(
        key=key, version=str(item.get(version) or ""), etag=str(item[etag]).strip('"'), size=int(item["size"])
    )
    return Notification(arrivals=(one,))
