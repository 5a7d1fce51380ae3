"""Makes the local S3 reject keys that are too long, as AWS's S3 does but MiniStack does not."""

from __future__ import annotations

from typing import Any

from busco.embedded import ministack_contract
from busco.lake.layout import MAX_KEY_BYTES, key_bytes

# The MiniStack functions that this module wraps or calls, with the parameters that they had when it was written.
EXPECTED = {
    "services.s3.handle_request": [
        *("method", "path", "headers", "body", "query_params", "signed_path", "enforce_bucket_region", "internal"),
        *("access_point_region", "access_point"),
    ],
    "services.s3._parse_bucket_key": ["path", "headers"],
    "services.s3._error": ["code", "message", "status", "resource", "extra", "headers"],
}


def install(s3: Any) -> None:
    """Makes MiniStack's S3 service, `ministack.services.s3`, check the length of the key in each request.

    Reading or writing a key that is too long returns S3's error (API reference, "Error responses", KeyTooLongError).

    Raises:
        RuntimeError: the installed MiniStack is not the version that this patch was written for.
    """
    ministack_contract.check(__name__, EXPECTED, "tests/integration/test_local_s3.py")
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
