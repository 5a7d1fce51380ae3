"""Lists the versions of objects that the lake bucket keeps, and makes older versions current again.

Only the publisher role and administrators may read them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import quote

from botocore.exceptions import ClientError

from busco.errors import BuscoError
from busco.lake.objects import ObjectStore

# The error codes of requests that the caller has no permission to make.
DENIED = ("AccessDenied", "AccessDeniedException", "403")


@dataclass(frozen=True)
class ObjectVersion:
    """A version of an object, or a delete marker (`deleted`). `bytes` is its size, and `modified` is in UTC."""

    key: str
    version: str
    etag: str
    bytes: int
    modified: datetime
    latest: bool
    deleted: bool


def versions(store: ObjectStore, key: str) -> list[ObjectVersion]:
    """Returns all versions of an object that the bucket has, including delete markers, newest first."""
    pages = store.client.get_paginator("list_object_versions").paginate(Bucket=store.bucket, Prefix=key)
    found = [
        ObjectVersion(
            key=key,
            version=one["VersionId"],
            etag=one.get("ETag", ""),
            bytes=one.get("Size", 0),
            modified=one["LastModified"],
            latest=one["IsLatest"],
            deleted=kind == "DeleteMarkers",
        )
        for page in pages
        for kind in ("Versions", "DeleteMarkers")
        for one in page.get(kind, [])
        if one["Key"] == key
    ]
    # S3 returns a key's versions newest first, but its delete markers in a separate list.
    return sorted(found, key=lambda one: (one.latest, one.modified), reverse=True)


def listed(store: ObjectStore, prefix: str, recreated: bool = False) -> dict[str, tuple[str, int, str]]:
    """Returns the ETag and size of each object whose key starts with `prefix`, and the ETag of its first version.

    The first version is the oldest one that the bucket still has. If the caller may not list versions, the current
    object is treated as the first one.

    Args:
        recreated: whether an object that was created again after it was deleted counts as a new one, so that its first
            version is the first one after the deletion.
    """
    try:
        pages = list(store.client.get_paginator("list_object_versions").paginate(Bucket=store.bucket, Prefix=prefix))
    except ClientError as error:
        if error.response["Error"]["Code"] not in DENIED:
            raise
        return {key: (etag, size, etag) for key, (etag, size) in store.sizes(prefix).items()}
    found = [one for page in pages for one in page.get("Versions", [])]
    deleted: dict[str, datetime] = {}
    for one in [one for page in pages for one in page.get("DeleteMarkers", [])] if recreated else []:
        deleted[one["Key"]] = max(one["LastModified"], deleted.get(one["Key"], one["LastModified"]))
    # S3 lists each key's versions newest first, so the last ETag for a key is that of the oldest one.
    first = {
        one["Key"]: one["ETag"]
        for one in found
        if one["IsLatest"] or one["Key"] not in deleted or one["LastModified"] > deleted[one["Key"]]
    }
    return {one["Key"]: (one["ETag"], one["Size"], first[one["Key"]]) for one in found if one["IsLatest"]}


def read(store: ObjectStore, version: ObjectVersion) -> bytes:
    """Returns the content of one version of an object."""
    answer = store.client.get_object(Bucket=store.bucket, Key=version.key, VersionId=version.version)
    return bytes(answer["Body"].read())


def rewrite(store: ObjectStore, version: ObjectVersion, current: str | None) -> None:
    """Makes an older version of a record current again by writing its content with a conditional write.

    Args:
        current: the ETag of the object to replace; None if there is none.

    Raises:
        AlreadyExists, Moved: the object has changed in the meantime.
        ClientError: AccessDenied if the bucket policy forbids replacing a record of this kind.
    """
    answer = store.client.get_object(Bucket=store.bucket, Key=version.key, VersionId=version.version)
    body, kind = answer["Body"].read(), answer["ContentType"]
    if current is None:
        store.create(version.key, body, kind)
    else:
        store.swap(version.key, body, current, kind)


def copy(store: ObjectStore, version: ObjectVersion) -> None:
    """Makes an older version of a data file current again by copying it, so that it has the same ETag as before.

    If an object was uploaded in parts, S3 derives its ETag from the parts (such an ETag ends with their number), so the
    object is copied in the same parts.

    Raises:
        BuscoError: the copy has, or would have, a different ETag.
    """
    source = {"Bucket": store.bucket, "Key": version.key, "VersionId": version.version}
    if "-" in version.etag:
        _copy_parts(store, version, source)
        return
    copied = store.client.copy_object(Bucket=store.bucket, Key=version.key, CopySource=source)
    if copied["CopyObjectResult"]["ETag"].strip('"') != version.etag.strip('"'):
        raise _different(store, version)


def _copy_parts(store: ObjectStore, version: ObjectVersion, source: dict[str, str]) -> None:
    s3, target = store.client, {"Bucket": store.bucket, "Key": version.key}
    count = int(version.etag.strip('"').rpartition("-")[2])
    first = s3.head_object(**source)
    upload = s3.create_multipart_upload(**target, ContentType=first["ContentType"], Metadata=first["Metadata"])
    target["UploadId"] = upload["UploadId"]
    try:
        parts: list[dict[str, Any]] = []
        offset = 0
        for number, size in enumerate(_part_sizes(s3, source, count), 1):
            # S3 accepts a range only if the source is larger than 5 MB.
            only = {} if count == 1 else {"CopySourceRange": f"bytes={offset}-{offset + size - 1}"}
            part = s3.upload_part_copy(**target, CopySource=source, PartNumber=number, **only)
            parts.append({"PartNumber": number, "ETag": part["CopyPartResult"]["ETag"]})
            offset += size
        if _etag_of([part["ETag"] for part in parts]) != version.etag.strip('"'):
            raise _different(store, version)
    except BaseException:
        s3.abort_multipart_upload(**target)
        raise
    s3.complete_multipart_upload(**target, MultipartUpload={"Parts": parts})


def _different(store: ObjectStore, version: ObjectVersion) -> BuscoError:
    return BuscoError(
        f"S3 gives a copy of version {version.version} of {store.url(version.key)} a different ETag",
        "an administrator can delete the newer versions instead: aws s3api delete-object "
        f"--bucket {store.bucket} --key {quote(version.key)} --version-id <VERSION>",
    )


def _part_sizes(s3: Any, source: dict[str, str], count: int) -> list[int]:
    """Returns the sizes in bytes of the parts in which an object was uploaded."""
    heads = [s3.head_object(**source, PartNumber=number) for number in range(1, count + 1)]
    if all("PartsCount" in head for head in heads):
        return [head["ContentLength"] for head in heads]
    # The local AWS ignores PartNumber. (On AWS, GetObjectAttributes returns the parts of only a few objects.)
    found = s3.get_object_attributes(**source, ObjectAttributes=["ObjectParts"], MaxParts=count)
    return [part["Size"] for part in found["ObjectParts"]["Parts"]]


def _etag_of(parts: Sequence[str]) -> str:
    """Returns the ETag of an object whose parts have these ETags: a hash of the parts' hashes, and their number."""
    digests = b"".join(bytes.fromhex(etag.strip('"')) for etag in parts)
    return f"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(parts)}"
