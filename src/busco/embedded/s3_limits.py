"""The local S3 refuses what S3 refuses and MiniStack takes: keys that are too long."""

from __future__ import annotations

from typing import Any

from busco.lake.layout import MAX_KEY_BYTES, key_bytes


def install(s3: Any) -> None:
    """Puts the check before each request to MiniStack's S3 service, `ministack.services.s3`.

    A longer key is answered as S3 does (API reference, "Error responses", KeyTooLongError), whether it is to be written
    or read.
    """
    original = s3.handle_request

    async def handle_request(method: str, path: str, *arguments: Any, **named: Any) -> Any:
        _, key = s3._parse_bucket_key(path, {})
        size = key_bytes(key)
        if size <= MAX_KEY_BYTES:
            return await original(method, path, *arguments, **named)
        extra = {"Size": str(size), "MaxSizeAllowed": str(MAX_KEY_BYTES)}
        status, headers, body = s3._error("KeyTooLongError", "Your key is too long", 400, extra=extra)
        return status, headers, b"" if method == "HEAD" else body

    s3.handle_request = handle_request
