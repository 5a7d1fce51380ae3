"""Short-lived credentials of roles, given as EC2 gives them to an instance: what has a role here asks for them itself.

The SDKs ask a metadata service by themselves, and renew what they got (EC2 User Guide, "Retrieve security credentials
from instance metadata"). AWS_EC2_METADATA_SERVICE_ENDPOINT names this one, with a secret of whoever asks in its path:
an ECS task's, or that of Airflow and the runners on this machine. ECS's own way is closed to containers, since SDKs ask
loopback and link-local addresses alone there.

Credentials are computed of the secret and the time, and not kept: they outlive a restart of the local AWS.
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

# Seconds: credentials are good for one to two of these. SDKs ask for new ones when a quarter of an hour is left.
WINDOW = 1800
# Who has which role on this machine, by the name of the stack's output.
ROLES = {"airflow": "AirflowRoleArn", "runner": "RunnerRoleArn", "ingest": "IngestRoleArn"}
_ROLE_PATH = "latest/meta-data/iam/security-credentials/"
_TOKEN_PATH = "latest/api/token"  # noqa: S105

# what an SDK would look at before: an empty key is none
_NO_OTHER = {
    "AWS_ACCESS_KEY_ID": "",
    "AWS_SECRET_ACCESS_KEY": "",
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    "AWS_CONFIG_FILE": "/dev/null",
}
# the environment of a process that asks AWS for nothing
NOBODY = {**_NO_OTHER, "AWS_EC2_METADATA_DISABLED": "true"}

RoleArn = Callable[[], str]
"""A role's ARN as it is now, empty where there is none: a restart of the local AWS makes roles with other names."""


@dataclass(frozen=True)
class Credentials:
    """`expires` is in seconds since the epoch."""

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
    """The credentials of whoever knows `secret` in the window of that number since the epoch."""

    def part(name: str) -> bytes:
        return hmac.new(secret.encode(), f"{name} {window}".encode(), hashlib.sha256).digest()

    key = f"ASIA{base64.b32encode(part('key')).decode()[:16]}"
    return Credentials(key, part("secret").hex(), part("token").hex(), (window + 2) * WINDOW)


class Instances:
    """Those who have a role. Safe in threads."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._known: dict[str, _Instance] = {}
        self._lock = threading.Lock()

    def add(self, secret: str, session: str, role: RoleArn) -> None:
        """Lets whoever knows `secret` have the role, in sessions of that name."""
        with self._lock:
            self._known[secret] = _Instance(secret, session, role)

    def remove(self, secret: str) -> None:
        with self._lock:
            self._known.pop(secret, None)

    def answer(self, method: str, path: str) -> tuple[int, str]:
        """What the metadata service says to a request for `path`, which begins with PATH: status and text."""
        secret, _, rest = path.removeprefix(PATH).partition("/")
        with self._lock:
            known = self._known.get(secret)
        if known is None:
            return 404, "no such instance"
        if method == "PUT" and rest == _TOKEN_PATH:
            return 200, "any"  # the secret in the path is what protects it
        role = known.role()
        name = role.rpartition("/")[2]
        if method != "GET" or not role or rest not in (_ROLE_PATH, f"{_ROLE_PATH}{name}"):
            return 404, "not offered here"
        if rest == _ROLE_PATH:
            return 200, name
        given = issued(secret, int(self._clock()) // WINDOW)
        content = {
            "Code": "Success",
            "Type": "AWS-HMAC",
            "LastUpdated": _stamp(self._clock()),
            "AccessKeyId": given.key,
            "SecretAccessKey": given.secret,
            "Token": given.token,
            "Expiration": _stamp(given.expires),
        }
        return 200, json.dumps(content)

    def session(self, key: str) -> tuple[Credentials, str, str] | None:
        """Whose access key that is: its credentials, the role's ARN, and the session's name; None if nobody's."""
        now = int(self._clock()) // WINDOW
        with self._lock:
            known = list(self._known.values())
        for one in known:
            for window in (now, now - 1):
                given = issued(one.secret, window)
                if hmac.compare_digest(given.key, key) and (role := one.role()):
                    return given, role, one.session
        return None


def variables(endpoint: str, secret: str) -> dict[str, str]:
    """The environment with which an SDK asks the local AWS at `endpoint` for credentials, and nobody else."""
    return {
        "AWS_EC2_METADATA_SERVICE_ENDPOINT": f"{endpoint}{PATH}{secret}",
        "AWS_EC2_METADATA_DISABLED": "false",
        # a machine that is busy takes its time; SDKs would wait for one second, once
        "AWS_METADATA_SERVICE_TIMEOUT": "10",
        "AWS_METADATA_SERVICE_NUM_ATTEMPTS": "4",
        **_NO_OTHER,
    }


def _stamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
