"""Confines the local AWS's process: no child processes, no connections except to known addresses, limited writes.

MiniStack has services that run functions, jobs and builds, and others that deliver to URLs. The known ones are refused
by name (`busco.embedded.door`, `busco.embedded.provisioned`); this module covers the unknown ones, whatever code a
request reaches. It restricts Python code only; DuckDB has its own limits (`busco.embedded.athena_iceberg`).
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
# Events that change a file or folder. Each pair has the position of a path argument, and the position of the descriptor
# of the folder that the path is relative to (None if the event has no descriptor; a descriptor of -1 means no folder).
_CHANGES: dict[str, tuple[tuple[int, int | None], ...]] = {
    "os.chmod": ((0, 2),), "os.chown": ((0, 3),), "os.link": ((0, 2), (1, 3)), "os.mkdir": ((0, 2),),
    "os.remove": ((0, 1),), "os.rename": ((0, 2), (1, 3)), "os.rmdir": ((0, 1),), "os.symlink": ((1, 2),),
    "os.truncate": ((0, None),), "os.utime": ((0, 3),), "os.setxattr": ((0, None),),
}  # fmt: skip
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_TRUNC


class Refused(PermissionError):
    """Raised when an operation is not allowed in this process. Callers of such operations expect an OSError."""


def confine(reachable: Collection[Address], writable: Collection[Path]) -> None:
    """Restricts this process for the rest of its life: it can't start other processes, can connect only to `reachable`,
    and can write, rename and remove files only under the folders in `writable` (and write to /dev/null).

    Raises:
        Refused: not by this function, but by any later operation that violates the restrictions.
    """
    hosts = {one[0] for one in reachable if not isinstance(one, str)}
    known = set(reachable)

    def no_process(_: Any) -> None:
        raise Refused("the local AWS can't start processes")

    def no_other(arguments: Any) -> None:
        one, address = arguments
        if one.family == socket.AF_NETLINK:  # goes to the kernel only
            return
        found = _text(address) if isinstance(address, (str, bytes)) else (_text(address[0]), address[1])
        if found not in known:
            where = found if isinstance(found, str) else f"{found[0]}:{found[1]}"
            raise Refused(f"the local AWS can't connect to {where}")

    def no_name(arguments: Any) -> None:
        name = _text(arguments[0])
        if name and name not in hosts:
            raise Refused(f"the local AWS can't look up {name}")

    folders = tuple(f"{os.path.realpath(folder)}{os.sep}" for folder in writable)

    def within(path: Any, folder: int = -1) -> None:
        if isinstance(path, int):  # a descriptor, which was checked when it was opened
            return
        text = os.fsdecode(path)
        # Links are resolved, except in the last part of the path, which can itself be a link to be removed or replaced.
        whole = (_folder(folder) if folder >= 0 else Path.cwd()) / text
        found = str(whole.parent.resolve() / whole.name) if whole.name not in ("", "..") else str(whole.resolve())
        if not f"{found}{os.sep}".startswith(folders) and found != os.devnull:
            raise Refused(f"the local AWS can't write outside its own folders: {text}")

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
    """Returns the path of an open folder."""
    if sys.platform == "darwin":
        import fcntl

        return Path(os.fsdecode(fcntl.fcntl(descriptor, fcntl.F_GETPATH, bytes(1024)).rstrip(b"\0")))
    return Path(f"/proc/self/fd/{descriptor}").readlink()
