"""Whose request it is: signatures are verified before MiniStack sees a request, of all keys and for all services.

MiniStack verifies them too, but not those of its root key, of `test` and of any account's number, nor for what it
serves before it knows the service, and it believes the hash of a body that a request says.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Mapping
from typing import Any

from busco.embedded import keys, ministack_contract, policies
from busco.embedded.door import CALLER, Refusal, Request
from busco.embedded.instances import Instances
from busco.embedded.keys import Pair

# What is called of ministack, with the parameters that it had when this was written.
EXPECTED = {
    "core.sigv4.parse_query_signature": ["query_params"],
    "core.sigv4.parse_header_signature": ["headers"],
    "core.sigv4.request_time_failure": ["signature", "now"],
    "core.sigv4.header_signature_failure": [
        *("signature", "secret", "method", "raw_path", "query_params", "headers", "body", "presigned", "explain"),
    ],
    "core.iam_evaluator.is_root_access_key": ["access_key_id"],
    "core.iam_evaluator.resolve_credential": ["access_key_id", "account_id", "session_token"],
    "services.sts.register_session": ["access_key", "session"],
    "services.ecs_metadata.handle_request": ["method", "path", "headers", "body", "query_params"],
}
_UNKNOWN = 'these credentials are not of this local AWS, or have expired; in a shell, again: eval "$(busco aws env)"'
_LONGEST = 7 * 24 * 3600  # seconds that an address is good for (AWS Signature Version 4 for API requests)
# what may stand in place of a body's hash (Amazon S3 API reference, "Authenticating Requests"), of S3 alone
_UNHASHED = ("UNSIGNED-PAYLOAD", "STREAMING-UNSIGNED-PAYLOAD-TRAILER", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD",
             "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER")  # fmt: skip


class Signatures:
    """Verifies requests.

    Args:
        owner: the account owner's pair.
        instances: who has a role.

    Raises:
        RuntimeError: this MiniStack is not the one that this was written for.
    """

    def __init__(self, owner: Pair, instances: Instances, clock: Callable[[], float] = time.time) -> None:
        ministack_contract.check(__name__, EXPECTED, "tests/integration/test_local_aws_roles.py")
        self._owner, self._instances, self._clock = owner, instances, clock

    def verified(self, asked: Request) -> str:
        """The access key with which the request is signed.

        Raises:
            Refusal: it is not signed by whom it says, has expired, or is signed with a key that nobody has.
        """
        from ministack.core import sigv4

        found, secret, presigned = self._signed(asked)
        if not presigned:
            self._body_as_signed(asked)
        failure = sigv4.header_signature_failure(
            found, secret, asked.method, asked.raw_path, asked.query, asked.headers, asked.body, presigned=presigned
        )
        if failure:
            raise Refusal(*failure)
        return str(found.access_key_id)

    def expects(self, asked: Request) -> None:
        """As busco.embedded.door.Watch. A request to S3 has the hash of its body in its headers, or none: its signature
        can be verified before it."""
        from ministack.core import sigv4

        found, secret, presigned = self._signed(asked)
        if presigned or (asked.service == "s3" and "x-amz-content-sha256" in asked.headers):
            failure = sigv4.header_signature_failure(
                found, secret, asked.method, asked.raw_path, asked.query, asked.headers, b"", presigned=presigned
            )
            if failure:
                raise Refusal(*failure)

    def _signed(self, asked: Request) -> tuple[Any, str, bool]:
        """What a request says of its signature, the secret that it is to be made with, and whether its address has it.

        Raises:
            Refusal: it has expired, or is signed with a key that nobody has.
        """
        from ministack.core import sigv4

        presigned = "authorization" not in asked.headers
        found = sigv4.parse_query_signature(asked.query) if presigned else sigv4.parse_header_signature(asked.headers)
        if isinstance(found, tuple):
            code, message, *_ = found
            raise Refusal(str(code), str(message), 400)
        if "host" not in found.signed_headers.split(";"):
            raise Refusal("SignatureDoesNotMatch", "the header host is not signed")
        self._in_time(asked, found, presigned)
        if presigned:
            token = asked.query.get("X-Amz-Security-Token", [""])[0]
        else:
            token = asked.headers.get("x-amz-security-token", "")
        return found, self._secret(found.access_key_id, token), presigned

    def metadata(self, method: str, path: str) -> tuple[int, str]:
        """As busco.embedded.door.Watch."""
        return self._instances.answer(method, path)

    async def task_metadata(self, path: str) -> tuple[int, str, bytes]:
        """As busco.embedded.door.Watch."""
        from ministack.services import ecs_metadata

        status, _, body = await ecs_metadata.handle_request("GET", path, {}, b"", {})
        return int(status), "application/json", body if isinstance(body, bytes) else str(body).encode()

    def proof(self, nonce: str, identity: Mapping[str, Any]) -> str:
        """As busco.embedded.door.Watch."""
        return keys.proof(self._owner, nonce, identity)

    def admit(self, asked: Request) -> None:
        """Lets a request pass, if it is the owner's, or a role's that policies are asked about."""
        key = self.verified(asked)
        policies.same_caller(asked, key)
        if key != self._owner.key:
            policies.decided(asked)
        CALLER.set(key)

    def _in_time(self, asked: Request, found: Any, presigned: bool) -> None:
        from ministack.core import sigv4

        if not re.fullmatch(r"\d{8}T\d{6}Z", found.amz_date):
            raise Refusal("IncompleteSignature", "X-Amz-Date is no time", 400)
        if not presigned:
            if failure := sigv4.request_time_failure(found):
                raise Refusal(*failure)
            return
        expires = asked.query["X-Amz-Expires"][0]
        if not expires.isdigit() or not 0 < int(expires) <= _LONGEST:
            raise Refusal("AuthorizationQueryParametersError", "X-Amz-Expires must be 1 to 604800 seconds", 400)
        began = time.mktime(time.strptime(found.amz_date, "%Y%m%dT%H%M%SZ")) - time.timezone
        if not began - 900 <= self._clock() <= began + int(expires):
            raise Refusal("AccessDenied", "Request has expired")

    def _body_as_signed(self, asked: Request) -> None:
        said = asked.headers.get("x-amz-content-sha256")
        if said is None or (asked.service == "s3" and said in _UNHASHED):
            return
        if said != hashlib.sha256(asked.body).hexdigest():
            raise Refusal("XAmzContentSHA256Mismatch", "the body is not the one that was signed", 400)

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
    """Makes a session known to MiniStack, as AssumeRole does."""
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
