"""What is secret of a platform on this machine, in files of mode 600 below its state folder, kept over restarts.

The owner's key pair is the developer's, who is admin of his account. Everything else has a role, whose credentials it
asks the local AWS for; what it asks with is an instance's secret (`busco.embedded.instances`).
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
    """An access key."""

    key: str
    secret: str


def secret(path: Path) -> str:
    """A random password, made once and kept in a file that only its owner reads."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, scratch = tempfile.mkstemp(dir=path.parent)  # of mode 600
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(32))
        # of two that make it at once, the first one's stays
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(scratch)
        Path(scratch).unlink()
    return path.read_text()


def owner(state: Path) -> Pair:
    """The key pair of the account's owner; its key looks like those of IAM's users."""
    kept = secret(state / "secrets" / "local-aws-owner")
    return Pair(f"AKIA{base64.b32encode(hashlib.sha256(kept.encode()).digest()).decode()[:16]}", kept)


def instance(state: Path, who: str) -> str:
    """The secret by which one of busco.embedded.instances.ROLES is known."""
    return secret(state / "secrets" / f"local-aws-{who}")


def renew_instances(state: Path, port: int, names: Iterable[str]) -> None:
    """Forgets the secrets of instances where they were not made for this port of the local AWS: whoever has the other
    one now may have heard them."""
    made_for = state / "secrets" / "local-aws-port"
    if made_for.is_file() and made_for.read_text() == str(port):
        return
    for who in names:
        (state / "secrets" / f"local-aws-{who}").unlink(missing_ok=True)
    made_for.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    made_for.write_text(str(port))


def proof(pair: Pair, nonce: str, said: Mapping[str, object]) -> str:
    """What only somebody who knows the pair's secret can add to `said`, for one asker: HMAC-SHA256, hexadecimal.

    Args:
        nonce: the asker's own random text.
        said: what can be written as JSON.
    """
    text = json.dumps({**said, "nonce": nonce}, sort_keys=True)
    # requests are signed with another key made of the secret (AWS Signature Version 4: "AWS4" before it)
    return hmac.new(f"busco identity {pair.secret}".encode(), text.encode(), hashlib.sha256).hexdigest()
