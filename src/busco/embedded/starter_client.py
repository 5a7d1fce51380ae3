"""The local AWS's client for Docker Compose's starter (`starter_service`), which listens on a Unix socket."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from busco.embedded.starter import About, Ended, Lines, LostError, PullError, StartError

END = None  # the last line of a response, sent when the container's output is complete
_FAULTS = {"LostError": LostError, "PullError": PullError, "StartError": StartError}
_SHORT = 10.0  # seconds for requests that Docker answers immediately


class AwayError(LostError):
    """The starter does not answer."""


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path, limit: float | None) -> None:
        super().__init__("starter", timeout=limit)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class SocketStarter:
    """A `starter.TaskStarter` behind a socket.

    Requests about a container are retried while the starter restarts, because a restarted starter finds its containers
    again. Without retries, the client could treat a running container as one that has ended or was never started.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def about(self) -> About:
        return About(**self._request("about", {}, _SHORT))

    def start(self, order: Mapping[str, Any]) -> str:
        # If the response is lost, repeating the request returns the container that was already started.
        return str(self._request_patiently("start", order)["container"])

    def wait(self, container: str) -> None:
        self._request_patiently("wait", {"container": container})

    def end(self, container: str) -> Ended:
        return Ended(**self._request_patiently("end", {"container": container}))

    def lines(self, container: str) -> Iterator[Lines]:
        # After a lost connection, the output is read from its beginning again, and what was already yielded is skipped.
        seen = 0
        while True:
            skip = seen
            try:
                for lines in self._lines(container):
                    fresh = lines[skip:]
                    skip = max(0, skip - len(lines))
                    seen += len(fresh)
                    if fresh:
                        yield fresh
            except (OSError, http.client.HTTPException, ValueError):
                time.sleep(1)
            else:
                return

    def remove(self, container: str) -> None:
        self._request_patiently("remove", {"container": container})

    def end_all(self, grace: int) -> int:
        return int(self._request("end_all", {"grace": grace})["containers"])

    def _lines(self, container: str) -> Iterator[Lines]:
        """Like `lines`, for one connection.

        Raises:
            ConnectionError: the connection ended before the output was complete.
        """
        connection = _Connection(self._path, None)
        try:
            response = self._response(connection, "lines", {"container": container})
            while line := response.readline():
                if (content := json.loads(line)) is END:
                    return
                yield [(int(written), str(text)) for written, text in content]
            raise ConnectionError("the starter closed the connection")
        finally:
            connection.close()

    def _request_patiently(self, verb: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Sends a request and returns the response, retrying for as long as the starter is unavailable."""
        while True:
            try:
                return self._request(verb, arguments)
            except AwayError:
                time.sleep(1)

    def _request(self, verb: str, arguments: Mapping[str, Any], limit: float | None = None) -> dict[str, Any]:
        """Sends a request and returns the response.

        Args:
            limit: timeout in seconds; None for requests that can take arbitrarily long.

        Raises:
            AwayError: the starter does not answer.
        """
        connection = _Connection(self._path, limit)
        try:
            content: dict[str, Any] = json.loads(self._response(connection, verb, arguments).read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise AwayError(f"the starter does not answer at {self._path}: {error}") from error
        finally:
            connection.close()
        return content

    def _response(
        self, connection: http.client.HTTPConnection, verb: str, arguments: Mapping[str, Any]
    ) -> http.client.HTTPResponse:
        """Sends a request and returns the response if the request succeeded.

        Raises:
            LostError, PullError, StartError: the starter reported this error.
        """
        connection.request("POST", f"/{verb}", json.dumps(arguments))
        response = connection.getresponse()
        if response.status == 200:
            return response
        fault = json.loads(response.read())
        raise _FAULTS.get(fault.get("kind"), StartError)(fault.get("message", ""))
