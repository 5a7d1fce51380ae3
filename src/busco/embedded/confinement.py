"""The local AWS's process starts no other process, asks nobody but whom it needs, and writes below its own folders
alone, whatever code in it is reached.

MiniStack has services that run functions, jobs and builds, and others that deliver to URLs. What is known of them is
refused by name (`busco.embedded.door`, `busco.embedded.provisioned`); this is for what is not known. It holds for
Python code: DuckDB, which is not, has limits of its own (`busco.embedded.athena_iceberg`).
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

Address = tuple[str, int] | str
"""Host and port, or the path of a Unix socket."""

# Python documentation, "Audit events table"
_PROCESSES = (
    "subprocess.Popen", "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "pty.spawn",
)  # fmt: skip
# Those that change a file or folder: which of their arguments are paths, and which the descriptors of the folders that
# these are relative to (-1: none).
_CHANGES: dict[str, tuple[tuple[int, int | None], ...]] = {
    "os.chmod": ((0, 2),), "os.chown": ((0, 3),), "os.link": ((0, 2), (1, 3)), "os.mkdir": ((0, 2),),
    "os.remove": ((0, 1),), "os.rename": ((0, 2), (1, 3)), "os.rmdir": ((0, 1),), "os.symlink": ((1, 2),),
    "os.truncate": ((0, None),), "os.utime": ((0, 3),), "os.setxattr": ((0, None),),
}  # fmt: skip
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_TRUNC


class Refused(PermissionError):
    """What the process may not do; callers of such functions expect OSError."""


def confine(reachable: Collection[Address], writable: Collection[Path]) -> None:
    """From now on, until it ends, this process starts no other one, connects to `reachable` alone, and writes, renames
    and removes below the folders in `writable` alone (and on /dev/null).

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

    folders = tuple(f"{os.path.realpath(folder)}{os.sep}" for folder in writable)

    def within(path: Any, folder: int = -1) -> None:
        if isinstance(path, int):  # a descriptor: whoever opened it was asked
            return
        text = os.fsdecode(path)
        # what is behind a link counts, but for the last part: that may be the link that is removed or replaced
        whole = (_folder(folder) if folder >= 0 else Path.cwd()) / text
        found = str(whole.parent.resolve() / whole.name) if whole.name not in ("", "..") else str(whole.resolve())
        if not f"{found}{os.sep}".startswith(folders) and found != os.devnull:
            raise Refused(f"the local AWS writes below its own folders: {text}")

    def no_write(arguments: Any) -> None:
        path, _, flags = arguments
        if isinstance(flags, int) and flags & _WRITING:
            within(path)
            if not isinstance(path, int):
                within(str(Path(os.fsdecode(path)).resolve()))

    def changes(positions: tuple[tuple[int, int | None], ...]) -> Callable[[Any], None]:
        def no_change(arguments: Any) -> None:
            for path, folder in positions:
                within(arguments[path], -1 if folder is None else arguments[folder])

        return no_change

    checks: dict[str, Callable[[Any], None]] = {
        "open": no_write,
        **{event: changes(positions) for event, positions in _CHANGES.items()},
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


def _folder(descriptor: int) -> Path:
    """Where an open folder is."""
    if sys.platform == "darwin":
        import fcntl

        return Path(os.fsdecode(fcntl.fcntl(descriptor, fcntl.F_GETPATH, bytes(1024)).rstrip(b"\0")))
    return Path(f"/proc/self/fd/{descriptor}").readlink()
