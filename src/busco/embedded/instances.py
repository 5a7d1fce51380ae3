"""Issues short-lived role credentials through an instance metadata service like EC2's.

SDKs fetch and renew credentials from a metadata service automatically (EC2 User Guide, "Retrieve security credentials
from instance metadata"). The variable AWS_EC2_METADATA_SERVICE_ENDPOINT contains this service's URL, and the URL's path
contains the client's secret. The clients are ECS tasks, as well as Airflow and runners on this machine. ECS's own
mechanism can't be used for containers here, because SDKs restrict its endpoint to loopback and link-local addresses.

Credentials aren't stored, but derived from the secret and the time, so they survive a restart of the local AWS.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from busco.embedded.door import INSTANCE_PATH as PATH

# The length of a window in seconds. Credentials are valid for one to two windows; SDKs renew them 15 minutes before
# they expire.
WINDOW = 1800
# The roles of processes on this machine, each with the stack output that contains the role's ARN.
ROLES = {"airflow": "AirflowRoleArn", "runner": "RunnerRoleArn", "ingest": "IngestRoleArn"}
_ROLE_PATH = "latest/meta-data/iam/security-credentials/"
_TOKEN_PATH = "latest/api/token"  # noqa: S105

# Variables that disable the credential sources that SDKs would try first; an empty key counts as not set.
_NO_OTHER = {
    "AWS_ACCESS_KEY_ID": "",
    "AWS_SECRET_ACCESS_KEY": "",
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    "AWS_CONFIG_FILE": "/dev/null",
}
# The environment of a process without any AWS credentials.
NOBODY = {**_NO_OTHER, "AWS_EC2_METADATA_DISABLED": "true"}

RoleArn = Callable[[], str]
"""Returns a role's current ARN, or '' if there is none. A restart of the local AWS creates roles with new names."""


@dataclass(frozen=True)
class Credentials:
    """Temporary credentials; `expires` is in seconds since the Unix epoch."""

    key: str
    secret: str
    token: str
    expires: int


@dataclass(frozen=True)
class _Instance:
    secret: str
    session: str
    role: RoleArn


def issued(secret: str, window: int) -> Credentials:
    """Derives the credentials of the holder of `secret` for a window; windows are counted from the Unix epoch."""

    def part(name: str) -> bytes:
        return hmac.new(secret.encode(), f"{name} {window}".encode(), hashlib.sha256).digest()

    key = f"ASIA{base64.b32encode(part('key')).decode()[:16]}"
    return Credentials(key, part("secret").hex(), part("token").hex(), (window + 2) * WINDOW)


class Instances:
    """The registered instances, each a secret with a role. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._known: dict[str, _Instance] = {}
        self._lock = threading.Lock()

    def add(self, secret: str, session: str, role: RoleArn) -> None:
        """Allows the holder of `secret` to use the role, with `session` as the session name."""
        with self._lock:
            self._known[secret] = _Instance(secret, session, role)

    def remove(self, secret: str) -> None:
        with self._lock:
            self._known.pop(secret, None)

    def answer(self, method: str, path: str) -> tuple[int, str]:
        """Returns the metadata service's response (status, text) to a request for `path`, which begins with PATH."""
        secret, _, rest = path.removeprefix(PATH).partition("/")
        with self._lock:
            known = self._known.get(secret)
        if known is None:
            return 404, "no such instance"
        if method == "PUT" and rest == _TOKEN_PATH:
            return 200, "any"  # any token will do: the secret in the path protects the credentials
        role = known.role()
        name = role.rpartition("/")[2]
        if method != "GET" or not role or rest not in (_ROLE_PATH, f"{_ROLE_PATH}{name}"):
            return 404, "not available here"
        if rest == _ROLE_PATH:
            return 200, name
        credentials = issued(secret, int(self._clock()) // WINDOW)
        content = {
            "Code": "Success",
            "Type": "AWS-HMAC",
            "LastUpdated": _stamp(self._clock()),
            "AccessKeyId": credentials.key,
            "SecretAccessKey": credentials.secret,
            "Token": credentials.token,
            "Expiration": _stamp(credentials.expires),
        }
        return 200, json.dumps(content)

    def session(self, key: str) -> tuple[Credentials, str, str] | None:
        """Returns the credentials, role ARN and session name of an access key; None if the key is unknown."""
        now = int(self._clock()) // WINDOW
        with self._lock:
            known = list(self._known.values())
        for one in known:
            for window in (now, now - 1):
                credentials = issued(one.secret, window)
                if hmac.compare_digest(credentials.key, key) and (role := one.role()):
                    return credentials, role, one.session
        return None


def variables(endpoint: str, secret: str) -> dict[str, str]:
    """Returns the variables that make SDKs get credentials only from the local AWS at `endpoint`."""
    return {
        "AWS_EC2_METADATA_SERVICE_ENDPOINT": f"{endpoint}{PATH}{secret}",
        "AWS_EC2_METADATA_DISABLED": "false",
        # A busy machine may respond slowly; by default, SDKs try once and wait for one second.
        "AWS_METADATA_SERVICE_TIMEOUT": "10",
        "AWS_METADATA_SERVICE_NUM_ATTEMPTS": "4",
        **_NO_OTHER,
    }


def _stamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
