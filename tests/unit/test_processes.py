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

MEMORY = 600 << 20  # bytes; enough that the kernel takes some time to free them


@contextmanager
def child(code: str) -> Iterator[tuple[int, float]]:
    """Starts a Python process, waits until it reports that it is ready, and yields its pid and creation time."""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stdin=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        try:
            yield process.pid, psutil.Process(process.pid).create_time()
        finally:
            process.kill()


def test_a_killed_process_is_dead_even_while_the_kernel_is_still_freeing_its_memory() -> None:
    with child(f"kept = b'x' * {MEMORY}; print('ready', flush=True); input()") as (pid, started):
        assert process_alive(pid, started)
        os.kill(pid, signal.SIGKILL)
        # immediately, although the kernel is still freeing its memory
        assert not process_alive(pid, started)


def test_a_stopped_process_is_alive_until_it_is_killed() -> None:
    with child("print('ready', flush=True); input()") as (pid, started):
        os.kill(pid, signal.SIGSTOP)
        assert process_alive(pid, started)
        os.kill(pid, signal.SIGKILL)
        assert not process_alive(pid, started)


def test_another_process_with_the_same_pid_is_told_apart_by_its_creation_time() -> None:
    own = psutil.Process()
    assert process_alive(own.pid, own.create_time())
    assert not process_alive(own.pid, own.create_time() - 60)
