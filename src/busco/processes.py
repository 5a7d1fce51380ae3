"""Processes by pid and start time, so that a recycled pid is never taken for ours; ended by id only."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import tempfile
from pathlib import Path

import psutil

_EXITING = 0x4  # PF_EXITING among a process's flags (Linux, include/linux/sched.h; proc_pid_stat(5))


def this_host(state: Path) -> str:
    """This machine's name in the lake's records: its host name when the state folder was made, and a random part.

    Kept in `<state>/host`: a laptop's host name changes with the network that it is in, a container's with each start.
    """
    path = state / "host"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            file.write(f"{socket.gethostname()}-{secrets.token_hex(4)}")
        with contextlib.suppress(FileExistsError):  # of two that make it at once, the first one's stays
            path.hardlink_to(file.name)
        Path(file.name).unlink()
    return path.read_text()


def own_name(prefix: str) -> str:
    """A name for a folder of this process's own, by which `clear_left_behind` knows when nobody needs it any more.

    By host too: containers that share the state folder have pids of their own.
    """
    return f"{prefix}-{os.getpid()}@{socket.gethostname()}-{secrets.token_hex(4)}"


def clear_left_behind(root: Path, prefix: str) -> None:
    """Takes away what processes of this host that were killed left below `root` under an `own_name`."""
    for left in root.glob(f"{prefix}-*@{socket.gethostname()}-*"):
        pid = left.name.removeprefix(f"{prefix}-").split("@")[0]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(left, ignore_errors=True)


def process_alive(pid: int, started: float) -> bool:
    """Whether the process with this pid and creation time (seconds since the epoch) exists, is no zombie, and was not
    killed: one that has much memory is there for a while after SIGKILL."""
    try:
        process = psutil.Process(pid)
        is_it = abs(process.create_time() - started) < 1.0 and process.status() != psutil.STATUS_ZOMBIE
        return bool(is_it and not _is_dying(pid))
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


def _is_dying(pid: int) -> bool:
    """Whether a process was sent SIGKILL or is on its way out; False where /proc does not say."""
    folder = Path(f"/proc/{pid}")
    try:
        status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines() if ":" in line)
        # behind the command's name, which may have anything in it
        flags = int((folder / "stat").read_text().rpartition(")")[2].split()[6])
    except (OSError, ValueError, IndexError):
        return False
    pending = int(status.get("SigPnd", "0"), 16) | int(status.get("ShdPnd", "0"), 16)
    return bool(flags & _EXITING or pending & 1 << (signal.SIGKILL - 1))


def kill_tree(pid: int, grace: float = 20.0) -> None:
    """Ends a process and its descendants by id: SIGTERM to the first, SIGKILL to what is left after `grace` seconds."""
    try:
        root = psutil.Process(pid)
        family = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    with contextlib.suppress(psutil.NoSuchProcess):
        root.send_signal(signal.SIGTERM)
    _, left = psutil.wait_procs(family, timeout=grace)
    for survivor in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            survivor.kill()
    psutil.wait_procs(left, timeout=5)
