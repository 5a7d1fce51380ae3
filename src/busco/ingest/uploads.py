"""Uploads files to the landing bucket, from which the events service ingests them (`busco put`)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from busco.ingest.files import SourceFile, state
from busco.ingest.refused import Refused
from busco.lake.layout import INGEST, ingest_outcome, stamp
from busco.lake.objects import ObjectStore
from busco.lake.records import IngestedObject, IngestOutcome, utc_now

_IN_ONE_REQUEST = 64 << 20  # bytes; larger files are uploaded in parts, with retries of single parts
_LOOK_EVERY = 1.0  # seconds between two looks for results


@dataclass(frozen=True)
class Uploaded:
    """An uploaded file.

    Attributes:
        version: the id of the object's version; '' if the bucket has no versions, or if the user may not read it.
        etag: without quotes; '' if the user may not read it.
        size: in bytes.
    """

    file: SourceFile
    key: str
    version: str
    etag: str
    size: int

    def is_in(self, result: IngestedObject) -> bool:
        """Whether a result is about this upload."""
        if result.key != self.key:
            return False
        if self.version or self.etag:
            return (result.version == self.version or not self.version) and self.etag in ("", result.etag)
        return result.size == self.size


def key_of(file: SourceFile) -> str:
    """Returns the key of a file in the landing bucket: below its table's folder, as it is below the given folder."""
    name = file.path.relative_to(file.folder).as_posix() if file.folder else file.path.name
    return f"{file.contract.source}/{file.contract.table}/{name}"


def upload(
    s3: Any, bucket: str, files: Sequence[SourceFile], scratch: Path, progress: Callable[[int], None]
) -> tuple[list[Uploaded], list[tuple[str, str]]]:
    """Uploads files; returns the uploaded ones, and the paths of the others, each with the reason.

    A file that can't be read is not uploaded, and neither is one whose key another of the files has.

    Args:
        scratch: the folder for temporary files.
        progress: called with the number of bytes uploaded since the last call.

    Raises:
        botocore.exceptions.ClientError: S3 refused an upload.
    """
    done: list[Uploaded] = []
    unread: list[tuple[str, str]] = []
    first: dict[str, SourceFile] = {}
    for file in files:
        key = key_of(file)
        if (other := first.setdefault(key, file)) is not file:
            if other.path.resolve() != file.path.resolve():
                unread.append(
                    (file.label, f"{other.label} has the same name in the landing bucket; rename one of them")
                )
            continue
        try:
            with file.opened(scratch) as opened:
                before = state(opened.path)
                version, etag = _upload(s3, bucket, key, opened.path, before[0], progress)
                if opened.has_changed(before):
                    raise Refused("it changed while it was uploaded; upload it again")
        except Refused as error:
            unread.append((file.label, str(error)))
        else:
            done.append(Uploaded(file, key, version, etag, before[0]))
    return done, unread


def _upload(s3: Any, bucket: str, key: str, path: Path, size: int, progress: Callable[[int], None]) -> tuple[str, str]:
    """Uploads a file; returns the version's id and ETag, as far as the user may read them."""
    with path.open("rb") as content:
        if size <= _IN_ONE_REQUEST:
            answer = s3.put_object(Bucket=bucket, Key=key, Body=content)
            progress(size)
            return str(answer.get("VersionId", "")), answer["ETag"].strip('"')
        s3.upload_fileobj(content, bucket, key, Callback=progress)
    try:
        answer = s3.head_object(Bucket=bucket, Key=key)
    except ClientError as error:
        if error.response["Error"]["Code"] in ("403", "AccessDenied"):
            return "", ""
        raise
    return str(answer.get("VersionId", "")), answer["ETag"].strip('"')


def past_orders(store: ObjectStore) -> frozenset[str]:
    """Returns the ids of the last day's orders to ingest, for `results`."""
    return frozenset(_recent_orders(store))


def _recent_orders(store: ObjectStore) -> list[str]:
    # ids begin with the time, by the clock of the events service, which may differ from this machine's
    return store.folders(INGEST, after=stamp(utc_now() - timedelta(days=1)))


def results(
    store: ObjectStore, uploaded: Sequence[Uploaded], past: frozenset[str], waiting: Callable[[int], None]
) -> Iterator[tuple[Uploaded, IngestedObject]]:
    """Yields the result for each upload as soon as the events service has recorded it.

    Args:
        past: the orders from before the upload, which are not about it.
        waiting: called every second with the number of uploads that have no result yet.
    """
    missing, read = list(uploaded), set(past)
    while missing:
        for order in sorted(set(_recent_orders(store)) - read):
            outcome = store.read(ingest_outcome(order), IngestOutcome)
            if outcome is None:  # it is being carried out
                continue
            read.add(order)
            for result in outcome.objects:
                found = next((one for one in missing if one.is_in(result)), None)
                if found is not None and result.outcome != "listed":
                    missing.remove(found)
                    yield found, result
        if missing:
            waiting(len(missing))
            time.sleep(_LOOK_EVERY)
