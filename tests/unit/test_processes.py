"""Which processes count as alive."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from busco.processes import process_alive

MEMORY = 600 << 20  # bytes; the kernel takes some time to free them


@contextmanager
def child(code: str) -> Iterator[tuple[int, float]]:
    """A Python process that has said that it is ready: its pid, and when it was made."""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stdin=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        try:
            yield process.pid, psutil.Process(process.pid).create_time()
        finally:
            process.kill()


def test_a_process_lives_until_it_is_killed_though_it_is_not_gone_yet() -> None:
    with child(f"kept = b'x' * {MEMORY}; print('ready', flush=True); input()") as (pid, started):
        assert process_alive(pid, started)
        os.kill(pid, signal.SIGKILL)
        # at once: its memory is being freed
        assert not process_alive(pid, started)


def test_a_stopped_process_lives_and_is_dead_once_it_is_killed() -> None:
    with child("print('ready', flush=True); input()") as (pid, started):
        os.kill(pid, signal.SIGSTOP)
        assert process_alive(pid, started)
        os.kill(pid, signal.SIGKILL)
        assert not process_alive(pid, started)


def test_another_process_of_the_same_pid_is_not_it() -> None:
    own = psutil.Process()
    assert process_alive(own.pid, own.create_time())
    assert not process_alive(own.pid, own.create_time() - 60)
