"""Files in the landing bucket: which table an object is for, and how its content is read.

Producers write to `<source>/<table>/<file>`, or to `<table>/<file>` if only one source has a table with this name
(docs/producing.md).
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO

from botocore.exceptions import ClientError, IncompleteReadError, ReadTimeoutError, ResponseStreamingError

from busco.errors import BuscoError
from busco.ingest.files import SourceFile, long_name, without_compression
from busco.ingest.refused import Refused, readable
from busco.ingest.s3_errors import is_about_object
from busco.lake.deliveries import OTHER_PROJECTS, Contract, deliveries_of
from busco.lake.layout import is_delivery
from busco.lake.objects import ObjectStore
from busco.lake.records import Arrival, Delivery

# Objects up to this size are held in memory, of which ingest needs room for two at once.
_IN_MEMORY = 64 << 20
_TRIES = 3
_ON_DISK = threading.Lock()
_GONE = ("NoSuchKey", "NoSuchVersion", "404")
# The id of an object that S3 stored while the bucket had no versioning. The next object with this id and the same key
# replaces it, so that only the ETag tells their contents apart (S3 User Guide, "Working with objects in a
# versioning-suspended bucket"). Events and deliveries can have '' instead.
NULL = "null"


@dataclass(frozen=True)
class Address:
    """The table that an object is for, and the object's name below the table's folder."""

    contract: Contract
    name: str


class Ignored(Exception):
    """The object is not a delivery, and needs no report."""


class Unaddressed(Exception):
    """The key belongs to no table; the message says why, and where the object should be."""


def address(key: str, size: int, contracts: Sequence[Contract]) -> Address:
    """Returns the table and the file name that a key stands for.

    Args:
        size: the object's size in bytes.

    Raises:
        Ignored: the object is not a delivery (`is_delivery`).
        Unaddressed: the key names no table, or only a table's folder.
    """
    if not is_delivery(key, size):
        raise Ignored
    parts = key.split("/")
    for contract in contracts:
        if parts[:2] == [contract.source, contract.table]:
            return _named(contract, parts[2:])
    found = [contract for contract in contracts if contract.table == parts[0]]
    if len(found) == 1 and parts[0] not in {contract.source for contract in contracts}:
        return _named(found[0], parts[1:])
    if len(found) > 1:
        places = " or ".join(sorted(f"{contract.source}/{contract.table}/" for contract in found))
        raise Unaddressed(f"several sources have a table {parts[0]}; deliver it to {places}")
    known = ", ".join(sorted(f"{contract.source}/{contract.table}/" for contract in contracts))
    raise Unaddressed(f"its folder belongs to no table; the tables' folders are {known}. {OTHER_PROJECTS}")


def _named(contract: Contract, rest: Sequence[str]) -> Address:
    # names of deliveries become parts of keys, and clients resolve the parts `.` and `..`
    if not rest or without_compression(rest[-1]) in ("", ".", ".."):
        raise Unaddressed(f"its key has no file name; deliver it to {contract.source}/{contract.table}/<file>")
    return Address(contract, "/".join(rest))


@dataclass(frozen=True)
class LandedObject:
    """An object to ingest, as one version of it.

    Attributes:
        name: its name below the table's folder, without a compression suffix (D1).
        version: the id of the version to read, which can be `NULL`; '' to read the object as it is now. The object is
            read only if it has the ETag.
        etag: the version's ETag, without quotes.
        size: in bytes.
    """

    s3: Any
    bucket: str
    key: str
    version: str
    etag: str
    size: int
    name: str
    contract: Contract

    @property
    def label(self) -> str:
        return f"s3://{self.bucket}/{self.key}"

    def delivery_in(self, deliveries: Sequence[Delivery]) -> Delivery | None:
        """Returns the delivery that was made from this object, so that it need not be read; None if there is none.

        A version is known by its id: an event about it can arrive again, and after a newer version. Without one, the
        newest delivery counts, since older content that returns is a delivery of its own (D2); for `NULL`, those of
        the object's versions with ids of their own don't count. Equal ETags of one key mean equal content, for each
        kind of encryption and upload (S3 API Reference, "Object").
        """
        made = [d for d in deliveries if d.source == self.label and d.contract_hash == self.contract.hash]
        if self.version not in ("", NULL):
            return next((d for d in made if (d.source_version, d.source_etag) == (self.version, self.etag)), None)
        counted = [d for d in deliveries if not self.version or d.source != self.label or version_id(d) == NULL]
        newest = max(counted, key=lambda d: d.number, default=None)
        return newest if newest in made and newest is not None and newest.source_etag == self.etag else None

    @property
    def origin(self) -> dict[str, str]:
        """The fields of a delivery's record that say what it was made from."""
        return {"source": self.label, "source_etag": self.etag}

    def has_changed(self, _: tuple[int, ...]) -> bool:
        """Whether the fetched copy has changed: nobody else can change it."""
        return False

    @contextlib.contextmanager
    def opened(self, scratch: Path) -> Iterator[SourceFile]:
        """Fetches the object once, and yields it as a local file that nobody else can change.

        A large object is copied to the disk: it is read three times, which would take longer over the network
        (docs/decisions/037-reading-the-landing-bucket.md). The copy has no name, so it is gone with the process.

        Raises:
            Refused: the object was deleted or replaced before it could be read, or the disk is full.
        """
        with _space(self.size, scratch) as file:
            version = self._fetch(file)
            yield SourceFile(Path(f"/proc/self/fd/{file.fileno()}"), self.name, self.contract, version=version)

    def _fetch(self, file: BinaryIO) -> str:
        """Writes the object's content to a file; returns the id of the version, or '' if the bucket has no versions."""
        # the same id can name different content later (`NULL`)
        chosen = {"IfMatch": f'"{self.etag}"', **({"VersionId": self.version} if self.version else {})}
        tries = 1
        while True:
            file.seek(0)
            file.truncate()
            try:
                answer = self.s3.get_object(Bucket=self.bucket, Key=self.key, **chosen)
                for chunk in answer["Body"].iter_chunks(1 << 20):
                    with readable():  # only the disk's errors: those of S3 do not refuse the object
                        file.write(chunk)
                        file.flush()
                return str(answer.get("VersionId", ""))
            except (IncompleteReadError, ReadTimeoutError, ResponseStreamingError):
                # boto3 retries requests, but not the reading of an answer
                if tries == _TRIES:
                    raise
                tries += 1
            except ClientError as error:
                raise self._refusal(error) from error

    def _refusal(self, error: ClientError) -> Exception:
        """Returns the reason for which the object alone can't be read, or the error itself if S3 failed."""
        code = error.response["Error"]["Code"]
        if code in _GONE or (code == "MethodNotAllowed" and self.version):  # the latter: a delete marker
            return Refused("it was deleted before it could be read")
        if code in ("PreconditionFailed", "412"):
            return Refused("it was replaced before it could be read; run the command again")
        if is_about_object(error):
            message = error.response["Error"].get("Message", code)
            return Refused(f"S3 refuses access to it: {message} ({code}, GetObject)", transient=True)
        return error


@contextlib.contextmanager
def _space(size: int, scratch: Path) -> Iterator[BinaryIO]:
    if size <= _IN_MEMORY:
        with os.fdopen(os.memfd_create("landed", os.MFD_CLOEXEC), "w+b") as memory:
            yield memory
    else:
        # one at a time: together, they might not fit on the disk
        with _ON_DISK, TemporaryFile(dir=scratch) as disk:
            yield disk


def find_landed(
    s3: Any, bucket: str, url: str, contracts: Sequence[Contract]
) -> tuple[list[LandedObject], list[tuple[str, str]]]:
    """Returns the objects below a URL of the landing bucket, and those that can't be ingested, each with the reason.

    Args:
        url: `s3://<landing bucket>/<prefix>`; the prefix is a folder or a whole key.

    Raises:
        BuscoError: the URL is not in the landing bucket, or nothing is there.
    """
    wanted, _, prefix = url.removeprefix("s3://").partition("/")
    if not bucket or wanted != bucket:
        what = f"only the landing bucket can be ingested from, not s3://{wanted}"
        hint = f"use s3://{bucket}/, or download the files" if bucket else "set BUSCO_LANDING_BUCKET"
        raise BuscoError(what, hint)
    found: list[LandedObject] = []
    unknown: list[tuple[str, str]] = []
    seen = False
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for item in page.get("Contents", ()):
            key = item["Key"]
            # a prefix `orders` must not take `orders_old/` too
            if prefix and not prefix.endswith("/") and key != prefix and not key.startswith(f"{prefix}/"):
                continue
            seen = True
            landed = landed_object(s3, bucket, key, "", item["ETag"].strip('"'), item["Size"], contracts)
            if isinstance(landed, LandedObject):
                found.append(landed)
            elif landed:
                unknown.append((f"s3://{bucket}/{key}", landed))
    if not seen:
        raise BuscoError(f"there is nothing at {url}", f"list the bucket: aws s3 ls s3://{bucket}/ --recursive")
    # each of two objects with one name would replace the other's rows whenever it is ingested
    names: dict[tuple[str, str], list[LandedObject]] = {}
    for one in found:
        names.setdefault((one.contract.name, one.name), []).append(one)
    for same in names.values():
        for one in same if len(same) > 1 else ():
            others = ", ".join(other.label for other in same if other is not one)
            reason = f"the same file of {one.contract.table} is also at {others}; delete one of them"
            unknown.append((one.label, reason))
    return [one for one in found if len(names[one.contract.name, one.name]) == 1], unknown


def version_id(one: Arrival | Delivery) -> str:
    """Returns the id by which S3 lists the version that arrived, or that a delivery was made from."""
    return (one.version if isinstance(one, Arrival) else one.source_version) or NULL


@dataclass(frozen=True)
class Version:
    """A version of an object of the landing bucket: its id, its ETag without quotes, and its size in bytes."""

    id: str
    etag: str
    size: int


def listed_versions(s3: Any, bucket: str, key: str) -> list[Version]:
    """Returns an object's versions, from the oldest to the newest; without delete markers."""
    found: list[Version] = []
    for page in s3.get_paginator("list_object_versions").paginate(Bucket=bucket, Prefix=key):
        # S3 lists an object's versions from the newest to the oldest (S3 User Guide, "Listing object versions")
        found += (
            Version(item["VersionId"], item["ETag"].strip('"'), item["Size"])
            for item in page.get("Versions", ())
            if item["Key"] == key
        )
    return found[::-1]


def to_apply(versions: Sequence[Version], deliveries: Sequence[Delivery], new: Container[str] = ()) -> list[Version]:
    """Returns the versions of an object to deliver now, so that its rows are those of its versions in order (D5).

    Rows of a later delivery correct those of earlier ones, so the rows depend only on the order in which the different
    contents were last delivered. This order must be that of the versions. The result begins after the newest content
    that is in order; it is empty if all contents are.

    Equal content can have different ETags (for example, if S3 encrypts it with KMS), and is then no delivery if it was
    also the newest one (D2). Therefore, contents without a delivery after a version that was just delivered are in the
    result too, with all later ones.

    Args:
        versions: the object's versions, from the oldest to the newest, without those that were refused.
        deliveries: the deliveries that were made from the object, in the order of their numbers.
        new: the ids of the versions that have just been delivered.
    """
    newest = {one.etag: at for at, one in enumerate(versions)}
    places = sorted(newest.values())  # of the versions that count: the newest one with each content
    numbers = {one.source_etag: one.number for one in deliveries}
    highest, start = 0, len(versions)
    for at in places:
        number = numbers.get(versions[at].etag, 0)
        if 0 < number < highest:
            break
        if number > highest:
            highest, start = number, at
    first = next((at for at, one in enumerate(versions) if one.id in new), len(versions))
    if any(versions[at].etag not in numbers for at in places if at > first):
        start = min(start, first)
    return [versions[at] for at in places if at > start]


def versions_to_apply(
    store: ObjectStore, file: LandedObject, new: Container[str], refused: Callable[[], Container[tuple[str, str]]]
) -> list[LandedObject]:
    """Returns the versions of an object to deliver now, in this order, after some were delivered (`to_apply`).

    Returns [] if the newest delivery under the object's name was not made from a version of the object.

    Args:
        new: the ids of the versions that have just been delivered.
        refused: returns the ids and ETags of the versions that were permanently refused; called only if needed.
    """
    deliveries = sorted(deliveries_of(store, file.contract, file.name), key=lambda one: one.number)
    mine = [one for one in deliveries if one.source == file.label]
    if len({version_id(one) for one in mine}) < 2 or mine[-1] is not deliveries[-1]:
        return []  # a single version is in order
    listed = listed_versions(file.s3, file.bucket, file.key)
    if not to_apply(listed, mine, new):
        return []
    gone = refused()
    versions = [one for one in listed if (one.id, one.etag) not in gone]
    return [replace(file, version=one.id, etag=one.etag, size=one.size) for one in to_apply(versions, mine, new)]


def landed_object(
    s3: Any, bucket: str, key: str, version: str, etag: str, size: int, contracts: Sequence[Contract]
) -> LandedObject | str:
    """Returns an object to ingest; or why it can't be ingested; or '' if it is not a delivery."""
    try:
        found = address(key, size, contracts)
    except Ignored:
        return ""
    except Unaddressed as error:
        return str(error)
    name = without_compression(found.name)
    if wrong := long_name(found.contract, name):
        return wrong
    return LandedObject(s3, bucket, key, version, etag, size, name, found.contract)
