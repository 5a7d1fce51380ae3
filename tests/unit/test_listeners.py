"""Whether our own process listens on a port of 127.0.0.1 is checked before anything is sent there."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import psutil
import pytest

from busco.embedded import processes

LISTENS = """
import os, socket, sys, time
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
if len(sys.argv) > 2 and os.fork() == 0:
    time.sleep(60)
elif len(sys.argv) > 2:
    server.close()
print("listening", flush=True)
time.sleep(60)
"""


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    processes.stop(tmp_path, "server", grace=0.5)


def start(state: Path, *more: str) -> tuple[processes.Process, int]:
    port = processes.pick_port(state, "server")
    command = [sys.executable, "-c", LISTENS, str(port), *more]
    process = processes.start(state, "server", command, os.environ, state)
    processes.wait_until(lambda: "listening" in processes.log_tail(process), process, "it", 20, every=0.02)
    return process, port


@pytest.mark.parametrize("more", [(), ("in a child",)], ids=["itself", "its child"])
def test_the_listener_is_the_process_that_was_started_or_its_child(state: Path, more: tuple[str, ...]) -> None:
    process, port = start(state, *more)
    assert processes.listens(process, port)
    with socket.create_server(("127.0.0.1", 0)) as other:
        assert not processes.listens(process, other.getsockname()[1])
    processes.stop(state, "server", grace=0.5)
    assert not processes.listens(process, port)


def test_the_sockets_owner_is_checked_if_the_process_cannot_be_inspected(state: Path) -> None:
    process, port = start(state)
    with mock.patch.object(psutil.Process, "net_connections", side_effect=psutil.AccessDenied):
        assert processes.listens(process, port)
        assert not processes.listens(process, processes.pick_port(state, "nobody"))
        ids = psutil.Process(process.pid).uids()._replace(effective=os.geteuid() + 1)
        with mock.patch.object(psutil.Process, "uids", return_value=ids):
            assert not processes.listens(process, port)
