"""Verifies the signature of every request, for all keys and services, before MiniStack handles it.

MiniStack verifies signatures too, but not if the access key is its root user's, `test` or any account number, nor for
requests that it serves before it has determined the service. It also trusts the body hash that a request declares.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

from busco.embedded import keys, ministack_contract, policies
from busco.embedded.door import CALLER, Refusal, Request
from busco.embedded.instances import Instances
from busco.embedded.keys import Pair

# The MiniStack functions that this module calls, with the parameters that they had when it was written.
EXPECTED = {
    "core.sigv4.parse_query_signature": ["query_params"],
    "core.sigv4.parse_header_signature": ["headers"],
    "core.sigv4.request_time_failure": ["signature", "now"],
    "core.sigv4.header_signing_documents": [
        *("signature", "method", "raw_path", "query_params", "headers", "body", "presigned"),
    ],
    "core.sigv4.header_signature_failure": [
        *("signature", "secret", "method", "raw_path", "query_params", "headers", "body", "presigned", "explain"),
    ],
    "core.iam_evaluator.is_root_access_key": ["access_key_id"],
    "core.iam_evaluator.resolve_credential": ["access_key_id", "account_id", "session_token"],
    "services.sts.register_session": ["access_key", "session"],
    "services.ecs_metadata.handle_request": ["method", "path", "headers", "body", "query_params"],
}
_UNKNOWN = 'the credentials have expired or are not for this local AWS; renew them in a shell: eval "$(busco aws env)"'
_LONGEST = 7 * 24 * 3600  # seconds that a presigned URL can be valid (AWS Signature Version 4 for API requests)
# what S3, and no other service, accepts in place of a body's hash (Amazon S3 API reference, "Authenticating Requests")
_IN_CHUNKS = ("STREAMING-AWS4-HMAC-SHA256-PAYLOAD", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER")
_UNHASHED = ("UNSIGNED-PAYLOAD", "STREAMING-UNSIGNED-PAYLOAD-TRAILER", *_IN_CHUNKS)


class Signatures:
    """The local AWS's `busco.embedded.door.Watch`: authenticates and authorizes requests.

    Args:
        owner: the account owner's key pair.
        instances: the processes and tasks that have a role.

    Raises:
        RuntimeError: the installed MiniStack is not the version that this class was written for.
    """

    def __init__(self, owner: Pair, instances: Instances, clock: Callable[[], float] = time.time) -> None:
        ministack_contract.check(__name__, EXPECTED, "tests/integration/test_local_aws_roles.py")
        self._owner, self._instances, self._clock = owner, instances, clock

    def verified(self, request: Request) -> str:
        """Returns the access key that the request is signed with.

        Raises:
            Refusal: the signature is wrong or has expired, or the key does not exist.
        """
        found, secret, presigned = self._signed(request)
        if not presigned:
            self._body_as_signed(request)
        _verify(request, found, secret, presigned, request.body)
        return str(found.access_key_id)

    def expects(self, request: Request) -> None:
        """See busco.embedded.door.Watch.

        A request to S3 declares the hash of its body, if any, in a header, so the signature can be verified before the
        body is read. If the body is signed in chunks, only the signature of the headers can be verified that early.
        """
        found, secret, presigned = self._signed(request)
        stated = request.headers.get("x-amz-content-sha256") if request.service == "s3" else None
        if stated in _IN_CHUNKS and not presigned and found.region_set is None:
            _verify_headers(request, found, secret)
        elif presigned or stated is not None:
            _verify(request, found, secret, presigned, b"")

    def _signed(self, request: Request) -> tuple[Any, str, bool]:
        """Returns a request's parsed signature, the key's secret, and whether the signature is in the URL.

        Raises:
            Refusal: the request has expired, or its key does not exist.
        """
        from ministack.core import sigv4

        presigned = "authorization" not in request.headers
        found = (
            sigv4.parse_query_signature(request.query) if presigned else sigv4.parse_header_signature(request.headers)
        )
        if isinstance(found, tuple):
            code, message, *_ = found
            raise Refusal(str(code), str(message), 400)
        if "host" not in found.signed_headers.split(";"):
            raise Refusal("SignatureDoesNotMatch", "the host header is not signed")
        self._in_time(request, found, presigned)
        if presigned:
            token = request.query.get("X-Amz-Security-Token", [""])[0]
        else:
            token = request.headers.get("x-amz-security-token", "")
        return found, self._secret(found.access_key_id, token), presigned

    def metadata(self, method: str, path: str) -> tuple[int, str]:
        """See busco.embedded.door.Watch."""
        return self._instances.answer(method, path)

    async def task_metadata(self, path: str) -> tuple[int, str, bytes]:
        """See busco.embedded.door.Watch."""
        from ministack.services import ecs_metadata

        status, _, body = await ecs_metadata.handle_request("GET", path, {}, b"", {})
        return int(status), "application/json", body if isinstance(body, bytes) else str(body).encode()

    def proof(self, nonce: str, identity: Mapping[str, Any]) -> str:
        """See busco.embedded.door.Watch."""
        return keys.proof(self._owner, nonce, identity)

    def admit(self, request: Request) -> None:
        """Accepts a request if the owner signed it, or if a role did and that role's policies will be evaluated."""
        key = self.verified(request)
        policies.check_caller(request, key)
        if key != self._owner.key:
            policies.check_covered(request)
        CALLER.set(key)

    def _in_time(self, request: Request, found: Any, presigned: bool) -> None:
        from ministack.core import sigv4

        if not re.fullmatch(r"\d{8}T\d{6}Z", found.amz_date):
            raise Refusal("IncompleteSignature", "X-Amz-Date is not a valid time", 400)
        if not presigned:
            if failure := sigv4.request_time_failure(found):
                raise Refusal(*failure)
            return
        expires = request.query["X-Amz-Expires"][0]
        if not expires.isdigit() or not 0 < int(expires) <= _LONGEST:
            raise Refusal("AuthorizationQueryParametersError", "X-Amz-Expires must be from 1 to 604800 seconds", 400)
        began = time.mktime(time.strptime(found.amz_date, "%Y%m%dT%H%M%SZ")) - time.timezone
        if not began - 900 <= self._clock() <= began + int(expires):
            raise Refusal("AccessDenied", "Request has expired")

    def _body_as_signed(self, request: Request) -> None:
        stated = request.headers.get("x-amz-content-sha256")
        if stated is None or (request.service == "s3" and stated in _UNHASHED):
            return
        if stated != hashlib.sha256(request.body).hexdigest():
            raise Refusal("XAmzContentSHA256Mismatch", "the body does not match the signed hash", 400)

    def _secret(self, key: str, token: str) -> str:
        from ministack.core import iam_evaluator
        from ministack.core.responses import get_account_id
        from ministack.services import sts

        if key == self._owner.key:
            if token:
                raise Refusal("InvalidToken", _UNKNOWN)
            return self._owner.secret
        if iam_evaluator.is_root_access_key(key):
            raise Refusal("InvalidAccessKeyId", _UNKNOWN)
        if key not in sts._sessions and (given := self._instances.session(key)) is not None:
            _register(*given)
        session = sts._sessions.get(key) or {}
        account = session.get("AccountId") or get_account_id()
        found = iam_evaluator.resolve_credential(key, account, token)
        if isinstance(found, iam_evaluator.CredentialResolutionError):
            code = "ExpiredToken" if "Expired" in found.code else "InvalidAccessKeyId"
            raise Refusal(code, _UNKNOWN)
        return str(found.secret_access_key)


def _register(given: Any, role: str, name: str) -> None:
    """Registers a session with MiniStack, as AssumeRole does."""
    from ministack.services import sts

    account = role.split(":")[4]
    sts.register_session(
        given.key,
        {
            "Arn": f"arn:aws:sts::{account}:assumed-role/{role.rpartition('/')[2]}/{name}",
            "UserId": f"AROA:{name}",
            "SecretAccessKey": given.secret,
            "SessionToken": given.token,
            "Expiration": given.expires,
            "AccountId": account,
            "PrincipalType": "AssumedRole",
            "SourceAccessKeyId": given.key,
            "SessionTags": [],
            "SessionPolicies": None,
        },
    )


def _verify(request: Request, found: Any, secret: str, presigned: bool, body: bytes) -> None:
    """Verifies a request's signature with the secret of its key.

    Raises:
        Refusal: the signature is wrong or has expired.
    """
    from ministack.core import sigv4

    failure = sigv4.header_signature_failure(
        found,
        secret,
        request.method,
        request.raw_path,
        request.query,
        request.headers,
        body,
        presigned=presigned,
    )
    if failure:
        raise Refusal(*failure)


def _verify_headers(request: Request, found: Any, secret: str) -> None:
    """Verifies the signature of the headers of a request whose body consists of separately signed chunks.

    MiniStack's own function can verify the headers only together with the chunks (AWS Signature Version 4 for API
    requests, "Transferring payload in multiple chunks").

    Raises:
        Refusal: the signature is wrong.
    """
    from ministack.core import sigv4

    _, text = sigv4.header_signing_documents(
        found, request.method, request.raw_path, request.query, request.headers, b""
    )
    key = f"AWS4{secret}".encode()
    for part in (found.date_stamp, found.region, found.service, "aws4_request", text):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    if not hmac.compare_digest(key.hex().encode(), found.signature.encode()):
        raise Refusal("SignatureDoesNotMatch", "the signature does not match the request")
