"""A copy of an older version gets the ETag that the version had, on an S3 that derives ETags as AWS's does."""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime
from typing import Any

import pytest

from busco.errors import BuscoError
from busco.lake.object_versions import ObjectVersion, copy
from busco.lake.objects import ObjectStore

WHERE = {"Bucket": "lake", "Key": "gold/t/prod-1a/a.parquet"}
SOURCE = {**WHERE, "VersionId": "v1"}


def md5(body: bytes) -> bytes:
    return hashlib.md5(body, usedforsecurity=False).digest()


class PartsS3:
    """One object with one older version. CopyObject makes an object of one piece, as on AWS: the local AWS keeps the
    source's ETag."""

    def __init__(self, parts: list[bytes], in_parts: bool) -> None:
        self.parts, self.body = parts, b"".join(parts)
        digests = b"".join(md5(part) for part in parts)
        self.etag = f"{md5(digests).hex()}-{len(parts)}" if in_parts else md5(self.body).hex()
        self.current, self.uploaded, self.aborted = "", dict[int, bytes](), False
        self.damage = b""

    def copy_object(self, Bucket: str, Key: str, CopySource: dict[str, str]) -> dict[str, Any]:
        assert ({"Bucket": Bucket, "Key": Key}, CopySource) == (WHERE, SOURCE)
        self.current = md5(self.body + self.damage).hex()
        return {"CopyObjectResult": {"ETag": f'"{self.current}"'}}

    def head_object(self, PartNumber: int = 0, **source: str) -> dict[str, Any]:
        assert source == SOURCE
        if not PartNumber:
            return {"ContentLength": len(self.body), "ContentType": "any/type", "Metadata": {"a": "b"}}
        return {"ContentLength": len(self.parts[PartNumber - 1]), "PartsCount": len(self.parts)}

    def create_multipart_upload(self, ContentType: str, Metadata: dict[str, str], **where: str) -> dict[str, str]:
        assert (where, ContentType, Metadata) == (WHERE, "any/type", {"a": "b"})
        return {"UploadId": "u"}

    def upload_part_copy(
        self, CopySource: dict[str, str], PartNumber: int, UploadId: str, CopySourceRange: str = "", **where: str
    ) -> dict[str, Any]:
        assert (where, CopySource, UploadId) == (WHERE, SOURCE, "u")
        body = self.body
        if CopySourceRange:
            found = re.fullmatch(r"bytes=(\d+)-(\d+)", CopySourceRange)
            assert found
            body = body[int(found[1]) : int(found[2]) + 1]
        self.uploaded[PartNumber] = body + self.damage
        return {"CopyPartResult": {"ETag": f'"{md5(self.uploaded[PartNumber]).hex()}"'}}

    def complete_multipart_upload(self, UploadId: str, MultipartUpload: dict[str, Any], **where: str) -> None:
        assert (where, UploadId) == (WHERE, "u")
        assert [part["PartNumber"] for part in MultipartUpload["Parts"]] == sorted(self.uploaded)
        digests = b"".join(md5(self.uploaded[number]) for number in sorted(self.uploaded))
        self.current = f"{md5(digests).hex()}-{len(self.uploaded)}"

    def abort_multipart_upload(self, UploadId: str, **where: str) -> None:
        assert (where, UploadId) == (WHERE, "u")
        self.aborted = True


def restore(s3: PartsS3) -> None:
    older = ObjectVersion(WHERE["Key"], "v1", f'"{s3.etag}"', len(s3.body), datetime.now(UTC), False, False)
    copy(ObjectStore(s3, "lake"), older)


@pytest.mark.parametrize("in_parts", [False, True])
@pytest.mark.parametrize("parts", [[b"one"], [b"first", b"second", b"x"]])
def test_a_copy_has_the_etag_of_the_version(parts: list[bytes], in_parts: bool) -> None:
    s3 = PartsS3(parts, in_parts)
    restore(s3)
    assert s3.current == s3.etag
    assert not s3.aborted


def test_a_copy_that_would_have_another_etag_is_not_made() -> None:
    s3 = PartsS3([b"first", b"second"], in_parts=True)
    s3.damage = b"!"
    with pytest.raises(BuscoError, match="a different ETag"):
        restore(s3)
    assert (s3.current, s3.aborted) == ("", True)


def test_a_copy_of_one_piece_that_has_another_etag_is_an_error() -> None:
    # as on AWS, if the bucket's encryption has changed since the version was written
    s3 = PartsS3([b"one"], in_parts=False)
    s3.damage = b"!"
    with pytest.raises(BuscoError, match="a different ETag"):
        restore(s3)
