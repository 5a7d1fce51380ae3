"""The local AWS's process starts no other process and asks nobody but whom it needs, whatever code in it is reached.

MiniStack has services that run functions, jobs and builds, and others that deliver to URLs. What is known of them is
refused by name (`busco.embedded.door`, `busco.embedded.provisioned`); this is for what is not known. It holds for
Python code: DuckDB, which is not, has limits of its own (`busco.embedded.athena_iceberg`).
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Collection
from typing import Any

Address = tuple[str, int] | str
"""Host and port, or the path of a Unix socket."""

# Python documentation, "Audit events table"
_PROCESSES = (
    "subprocess.Popen", "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "pty.spawn",
)  # fmt: skip


class Refused(PermissionError):
    """What the process may not do; callers of such functions expect OSError."""


def confine(reachable: Collection[Address]) -> None:
    """From now on, until it ends, this process starts no other one and connects to `reachable` alone.

    Raises:
        Refused: later, in whatever tries it.
    """
    hosts = {one[0] for one in reachable if not isinstance(one, str)}
    known = set(reachable)

    def no_process(_: Any) -> None:
        raise Refused("the local AWS starts no processes")

    def no_other(arguments: Any) -> None:
        one, address = arguments
        if one.family == socket.AF_NETLINK:  # the kernel's
            return
        found = _text(address) if isinstance(address, (str, bytes)) else (_text(address[0]), address[1])
        if found not in known:
            where = found if isinstance(found, str) else f"{found[0]}:{found[1]}"
            raise Refused(f"the local AWS asks nobody: {where}")

    def no_name(arguments: Any) -> None:
        name = _text(arguments[0])
        if name and name not in hosts:
            raise Refused(f"the local AWS asks nobody: {name}")

    checks: dict[str, Callable[[Any], None]] = {
        **dict.fromkeys(_PROCESSES, no_process),
        **dict.fromkeys(("socket.connect", "socket.sendto", "socket.sendmsg"), no_other),
        **dict.fromkeys(("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"), no_name),
    }

    def hook(event: str, arguments: Any) -> None:
        if (check := checks.get(event)) is not None:
            check(arguments)

    sys.addaudithook(hook)


def _text(given: Any) -> str:
    return given.decode(errors="replace") if isinstance(given, bytes) else str(given or "")
