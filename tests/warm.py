"""Runs Python programs in separate processes that don't have to import dbt again, which takes 3 s of CPU time.

A server process that has imported what the command needs forks for each program. The program gets its own arguments,
environment, folder and streams, and has its own exit status; it shares no state with the test or with other programs.
"""

from __future__ import annotations

import functools
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
# not DuckDB, which starts a thread when it is imported: a fork doesn't inherit threads
IMPORTED = ("dbt.cli.main", "busco.cli", "boto3")


def run(
    *arguments: str, cwd: Path, environment: Mapping[str, str], timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Runs `python ARGUMENTS…` of dbt's environment, like `subprocess.run` with captured text.

    Args:
        arguments: `-m` and a module, or a script's path; then the program's arguments.
        cwd: its working directory.
        environment: its complete environment.
        timeout: the number of seconds after which it is killed.

    Raises:
        subprocess.TimeoutExpired: it was killed.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        request = {"arguments": arguments, "cwd": str(cwd), "environment": dict(environment), "timeout": timeout}
        server = _server()
        socket.send_fds(server, [json.dumps(request).encode() + b"\n"], [out.fileno(), err.fileno()])
        answer = json.loads(server.makefile().readline())
        out.seek(0)
        err.seek(0)
        if answer["expired"]:
            raise subprocess.TimeoutExpired(arguments, timeout, out.read(), err.read())
        return subprocess.CompletedProcess(arguments, answer["status"], out.read(), err.read())


@functools.cache
def _server() -> socket.socket:
    """Starts this process's server, which ends with this process; returns the connection to it."""
    ours, theirs = socket.socketpair()
    inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "LC_ALL") if name in os.environ}
    with theirs:
        command = [str(ROOT / ".venv-dbt/bin/python"), __file__, str(theirs.fileno())]
        subprocess.Popen(command, pass_fds=[theirs.fileno()], env=inherited, cwd="/", stdin=subprocess.DEVNULL)
    return ours


def serve(connection: socket.socket) -> None:
    """Forks for each request until the other end is closed."""
    while True:
        text, streams, _, _ = socket.recv_fds(connection, 1 << 16, 2)
        while text and not text.endswith(b"\n"):
            text += connection.recv(1 << 16)
        if not text:
            return
        request = json.loads(text)
        child = os.fork()
        if child == 0:
            connection.close()
            _become(request, streams)
        for stream in streams:
            os.close(stream)
        connection.sendall(json.dumps(_ended(child, request["timeout"])).encode() + b"\n")


def _become(request: Mapping[str, Any], streams: Sequence[int]) -> None:
    for number, stream in enumerate(streams, start=1):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.clear()
    os.environ.update(request["environment"])
    time.tzset()
    os.chdir(request["cwd"])
    first, *rest = request["arguments"]
    if first == "-m":
        # `python -m` puts the working directory first in the module search path
        sys.path[0] = request["cwd"]
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(Path(first).parent)
        sys.argv = [first, *rest]
        runpy.run_path(first, run_name="__main__")
    raise SystemExit(0)


def _ended(child: int, timeout: float) -> dict[str, Any]:
    deadline = time.monotonic() + timeout
    expired = False
    pause = 0.001
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > deadline and not expired:
            expired = True
            os.kill(child, signal.SIGKILL)
        time.sleep(pause)
        pause = min(pause * 2, 0.05)
    return {"status": os.waitstatus_to_exitcode(ended[1]), "expired": expired}


if __name__ == "__main__":
    for module in IMPORTED:
        __import__(module)
    threads = len(psutil.Process().threads())
    assert threads == 1, f"{threads} threads, but a fork keeps only one"
    with socket.socket(fileno=int(sys.argv[1])) as end:
        serve(end)
