"""Docker Compose's starter, the only process with access to Docker's socket. It serves the local AWS on a Unix socket.

Docker Compose runs `python -m busco.embedded.starter_service`. The protocol is HTTP: POST /<verb> with a JSON object,
where a verb is a method of `starter.TaskStarter`. The starter has no network and validates everything that it starts,
so a compromised local AWS can only start ordinary tasks and has no other access to the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import socketserver
import sys
from collections.abc import Collection, Mapping
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from busco.embedded.starter import DockerStarter, LostError, PullError, StartError, TaskStarter, reason
from busco.embedded.starter_client import END
from busco.embedded.task_shape import MOUNTED, Rules
from busco.output import echo

DOCKER = "unix:///var/run/docker.sock"
MOST_BYTES = 1_000_000  # in a request; the largest task definition has 64 KiB (ECS service quotas)
TIMEOUT = 60.0
FAULTS = (LostError, PullError, StartError)


class _Handler(BaseHTTPRequestHandler):
    """Handles one request; the connection is closed after the response."""

    server: _Server

    def do_POST(self) -> None:
        verb = self.path.removeprefix("/")
        try:
            size = int(self.headers.get("content-length") or 0)
            if not 0 <= size <= MOST_BYTES:
                raise ValueError(f"{size} bytes")
            given = json.loads(self.rfile.read(size) or b"{}")
            if not isinstance(given, dict):
                raise ValueError("not a JSON object")
        except ValueError as error:
            self._reply(400, {"kind": "Request", "message": str(error)})
            return
        try:
            if verb == "lines":
                self._lines(_text(given, "container"))
            else:
                self._reply(200, answer(self.server.starter, verb, given))
        except FAULTS as fault:
            self._reply(409, {"kind": type(fault).__name__, "message": str(fault)})
        except (KeyError, TypeError, ValueError) as error:
            self._reply(400, {"kind": "Request", "message": f"{type(error).__name__}: {error}"})

    def _lines(self, container: str) -> None:
        output = self.server.starter.lines(container)
        # The first lines are read before the status is sent, so that a failure to read them becomes an error response.
        first = next(output, [])
        self.send_response(200)
        self.end_headers()
        self._write(first)
        with contextlib.suppress(LostError):
            for lines in output:
                self._write(lines)
            self._write(END)

    def _write(self, content: Any) -> None:
        self.wfile.write(json.dumps(content).encode() + b"\n")

    def _reply(self, status: int, content: Mapping[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Logs nothing: the client has no address, and ECS and Docker record what was started."""


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, path: Path, starter: TaskStarter) -> None:
        self.starter = starter
        path.unlink(missing_ok=True)
        before = os.umask(0o117)
        try:
            super().__init__(str(path), _Handler)
        finally:
            os.umask(before)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignores clients that have disconnected."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def answer(starter: TaskStarter, verb: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Calls a verb and returns its response.

    Raises:
        ValueError: there is no such verb, or its arguments are invalid.
        LostError, PullError, StartError: raised by the verb.
    """
    if verb == "about":
        return asdict(starter.about())
    if verb == "start":
        return {"container": starter.start(given)}
    if verb == "wait":
        starter.wait(_text(given, "container"))
        return {}
    if verb == "end":
        return asdict(starter.end(_text(given, "container")))
    if verb == "remove":
        starter.remove(_text(given, "container"))
        return {}
    if verb == "end_all":
        return {"containers": starter.end_all(int(given["grace"]))}
    raise ValueError(f"no such verb: {verb[:40]}")


def serve(path: Path, starter: TaskStarter) -> _Server:
    """Returns a server on a new socket that only its owner and group can use; an existing socket file is replaced."""
    return _Server(path, starter)


def mounts_of_this_container(client: Any, targets: Collection[str]) -> dict[str, str]:
    """Finds which of the target paths in this process's container are mounts of folders on Docker's host.

    Args:
        client: a docker-py client.

    Returns:
        Path in this container → folder on the host.
    """
    mounts = client.containers.get(socket.gethostname()).attrs["Mounts"]
    return {one["Destination"]: one["Source"] for one in mounts if one["Destination"] in targets}


def _text(given: Mapping[str, Any], name: str) -> str:
    value = given[name]
    if not isinstance(value, str):
        raise ValueError(f"{name} is not a string")
    return value


def main() -> int:
    """Serves until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--socket", type=Path, required=True, help="the Unix socket to serve the local AWS on")
    parser.add_argument("--image", required=True, help="the image that tasks run")
    parser.add_argument(
        "--network", required=True, help="the tasks' network, whose name also labels this starter's containers"
    )
    given = parser.parse_args()
    import docker

    try:
        client = docker.DockerClient(base_url=DOCKER, timeout=TIMEOUT)
        folders = mounts_of_this_container(client, MOUNTED)
    except (docker.errors.DockerException, OSError) as error:
        echo(
            f"starter: Docker can't be reached at {DOCKER}: {reason(error)}\n"
            "check that DOCKER_GID in .env is the socket's group: stat -c %g /var/run/docker.sock",
            err=True,
        )
        return 1
    rules = Rules(image=given.image, network=given.network, owner=given.network, folders=folders)
    with serve(given.socket, DockerStarter(client, rules)) as server:
        echo(f"event=starter_start image={rules.image} network={rules.network} folders={sorted(folders)}")
        server.serve_forever()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
