"""Processes by pid and start time, so that a recycled pid is never taken for ours; ended by id only."""

from __future__ import annotations

import contextlib
import signal

import psutil


def process_alive(pid: int, started: float) -> bool:
    """Whether the process with this pid and creation time (seconds since the epoch) exists and is no zombie."""
    try:
        process = psutil.Process(pid)
        return bool(abs(process.create_time() - started) < 1.0 and process.status() != psutil.STATUS_ZOMBIE)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


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
