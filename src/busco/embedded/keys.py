"""Keeps a local platform's secrets across restarts, in files with mode 600 under the platform's state folder.

The owner's key pair is for the developer, who is the account's admin. Every other client has a role, and gets the
role's credentials from the local AWS with an instance secret (`busco.embedded.instances`).
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import os
import secrets
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Pair:
    """An access key with its secret."""

    key: str
    secret: str


def secret(path: Path) -> str:
    """Returns a random password, generated once and kept in a file that only its owner can read."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, scratch = tempfile.mkstemp(dir=path.parent)  # created with mode 600
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(32))
        # If two processes generate a secret at the same time, the one stored first is kept.
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(scratch)
        Path(scratch).unlink()
    return path.read_text()


def owner(state: Path) -> Pair:
    """Returns the key pair of the account's owner; the access key has the format of an IAM user's key."""
    kept = secret(state / "secrets" / "local-aws-owner")
    return Pair(f"AKIA{base64.b32encode(hashlib.sha256(kept.encode()).digest()).decode()[:16]}", kept)


def instance(state: Path, who: str) -> str:
    """Returns the secret that identifies processes with a role in `busco.embedded.instances.ROLES`."""
    return secret(state / "secrets" / f"local-aws-{who}")


def renew_instances(state: Path, port: int, names: Iterable[str]) -> None:
    """Deletes the instance secrets if they were generated when the local AWS had another port.

    Another process may be listening on the previous port now, and clients may have sent it their secrets.
    """
    made_for = state / "secrets" / "local-aws-port"
    if made_for.is_file() and made_for.read_text() == str(port):
        return
    for who in names:
        (state / "secrets" / f"local-aws-{who}").unlink(missing_ok=True)
    made_for.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    made_for.write_text(str(port))


def proof(pair: Pair, nonce: str, content: Mapping[str, object]) -> str:
    """Returns a hexadecimal HMAC-SHA256 of `content`, which proves knowledge of the pair's secret to one client.

    Args:
        pair: the key pair.
        nonce: a random string that the client chose.
        content: a mapping that can be written as JSON.
    """
    text = json.dumps({**content, "nonce": nonce}, sort_keys=True)
    # Request signatures derive a different key from the secret, with the prefix "AWS4" (AWS Signature Version 4).
    return hmac.new(f"busco identity {pair.secret}".encode(), text.encode(), hashlib.sha256).hexdigest()
