"""Identifies processes (by pid and start time, because pids are reused) and ends them."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import tempfile
from concurrent.futures import Future, wait
from pathlib import Path
from typing import TypeVar

import psutil

Result = TypeVar("Result")
_EXITING = 0x4  # PF_EXITING among a process's flags (Linux, include/linux/sched.h; proc_pid_stat(5))


def result_of(future: Future[Result]) -> Result:
    """Returns a future's result, and notices an interrupt (SIGINT) in the meantime.

    The kernel may deliver the signal to any thread of the process, but Python handles it in the main thread, which
    `Future.result` would not wake (Python's documentation, "Execution of Python signal handlers").

    Raises:
        KeyboardInterrupt: the process was interrupted.
        Exception: that of the future.
    """
    while not wait([future], timeout=0.2).done:
        pass
    return future.result()


def this_host(state: Path) -> str:
    """Returns this machine's name in the lake's records: its host name at the time of the first call, plus a random
    suffix.

    The name is stored in `<state>/host`, because a laptop's host name changes with its network, and a container's
    with each start.
    """
    path = state / "host"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            file.write(f"{socket.gethostname()}-{secrets.token_hex(4)}")
        with contextlib.suppress(FileExistsError):  # if two processes create it at once, the first one wins
            path.hardlink_to(file.name)
        Path(file.name).unlink()
    return path.read_text()


def own_name(prefix: str) -> str:
    """Returns a name for a folder that belongs to this process, so that `clear_left_behind` can tell when to remove
    the folder.

    The name includes the host, because processes in different containers that share the state folder can have the
    same pid.
    """
    return f"{prefix}-{os.getpid()}@{socket.gethostname()}-{secrets.token_hex(4)}"


def clear_left_behind(root: Path, prefix: str) -> None:
    """Removes the `own_name` folders under `root` that belong to dead processes on this host."""
    for left in root.glob(f"{prefix}-*@{socket.gethostname()}-*"):
        pid = left.name.removeprefix(f"{prefix}-").split("@")[0]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(left, ignore_errors=True)


def process_alive(pid: int, started: float) -> bool:
    """Whether the process with this pid and creation time (a Unix timestamp) is running.

    Zombies don't count as running, and neither do processes that were killed: a process with a lot of memory can take a
    while to exit after SIGKILL.
    """
    try:
        process = psutil.Process(pid)
        is_it = abs(process.create_time() - started) < 1.0 and process.status() != psutil.STATUS_ZOMBIE
        return bool(is_it and not _is_dying(pid))
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


def _is_dying(pid: int) -> bool:
    """Whether a process was sent SIGKILL or is exiting; False if /proc is not available."""
    folder = Path(f"/proc/{pid}")
    try:
        status = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines() if ":" in line)
        # the fields after the command's name, which can contain any character
        flags = int((folder / "stat").read_text().rpartition(")")[2].split()[6])
    except (OSError, ValueError, IndexError):
        return False
    pending = int(status.get("SigPnd", "0"), 16) | int(status.get("ShdPnd", "0"), 16)
    return bool(flags & _EXITING or pending & 1 << (signal.SIGKILL - 1))


def kill_tree(pid: int, grace: float = 20.0) -> None:
    """Ends the process with this pid, and its descendants.

    Sends SIGTERM to the process only, and SIGKILL to each of them that is still running after `grace` seconds.
    """
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
