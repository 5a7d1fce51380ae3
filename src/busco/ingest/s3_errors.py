"""Tells S3's errors about one object from those about this process, the bucket or S3 itself."""

from __future__ import annotations

from botocore.exceptions import ClientError

# Codes with a status from 400 to 499 that any other request would get too (S3 API Reference, "Error responses").
_ABOUT_US = frozenset(
    {
        "AuthorizationHeaderMalformed", "BandwidthLimitExceeded", "ExpiredToken", "ExpiredTokenException",
        "InvalidAccessKeyId", "InvalidBucketName", "InvalidSecurity", "InvalidToken", "MissingAuthenticationToken",
        "MissingSecurityHeader", "NoSuchBucket", "RequestExpired", "RequestLimitExceeded", "RequestTimeTooSkewed",
        "RequestTimeout", "SignatureDoesNotMatch", "TokenRefreshRequired",
    }
)  # fmt: skip


def is_about_object(error: ClientError) -> bool:
    """Whether S3 refuses a request because of its object, so that requests for other objects may succeed.

    Producers can encrypt objects with keys of their own (SSE-C, KMS), archive them, and restrict access to them.
    """
    code = error.response["Error"]["Code"]
    status = error.response["ResponseMetadata"]["HTTPStatusCode"]
    if status == 429 or "Throttl" in code or code in _ABOUT_US:
        return False
    return 400 <= status < 500
