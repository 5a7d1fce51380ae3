"""The local AWS's side of Docker Compose's starter (`starter_service`): its verbs over a Unix socket."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from busco.embedded.starter import About, Ended, Lines, LostError, PullError, StartError

END = None  # the last line of a container's output that is complete
_FAULTS = {"LostError": LostError, "PullError": PullError, "StartError": StartError}
_SHORT = 10.0  # seconds for what Docker answers at once


class AwayError(LostError):
    """No starter answers."""


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path, limit: float | None) -> None:
        super().__init__("starter", timeout=limit)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class SocketStarter:
    """A starter behind a socket, as `starter.TaskStarter` says.

    What concerns a container waits for a starter that is being started again, which finds its containers again: nobody
    may take a container for ended, or for never started, that runs.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def about(self) -> About:
        return About(**self._asked("about", {}, _SHORT))

    def start(self, order: Mapping[str, Any]) -> str:
        # asked again after an answer that got lost, it gives the container that it has started
        return str(self._answered("start", order)["container"])

    def wait(self, container: str) -> None:
        self._answered("wait", {"container": container})

    def end(self, container: str) -> Ended:
        return Ended(**self._answered("end", {"container": container}))

    def lines(self, container: str) -> Iterator[Lines]:
        # one that was cut off is read from its beginning, but for what has come already
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
        self._answered("remove", {"container": container})

    def end_all(self, grace: int) -> int:
        return int(self._asked("end_all", {"grace": grace})["containers"])

    def _lines(self, container: str) -> Iterator[Lines]:
        """The same of one connection.

        Raises:
            ConnectionError: it ended before the output did.
        """
        connection = _Connection(self._path, None)
        try:
            answer = self._answer(connection, "lines", {"container": container})
            while line := answer.readline():
                if (content := json.loads(line)) is END:
                    return
                yield [(int(written), str(text)) for written, text in content]
            raise ConnectionError("the starter has gone")
        finally:
            connection.close()

    def _answered(self, verb: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """A verb's answer, however long the starter is away."""
        while True:
            try:
                return self._asked(verb, given)
            except AwayError:
                time.sleep(1)

    def _asked(self, verb: str, given: Mapping[str, Any], limit: float | None = None) -> dict[str, Any]:
        """A verb's answer.

        Args:
            limit: seconds; none for what takes its time.

        Raises:
            AwayError: no starter answers.
        """
        connection = _Connection(self._path, limit)
        try:
            content: dict[str, Any] = json.loads(self._answer(connection, verb, given).read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise AwayError(f"the starter does not answer at {self._path}: {error}") from error
        finally:
            connection.close()
        return content

    def _answer(
        self, connection: http.client.HTTPConnection, verb: str, given: Mapping[str, Any]
    ) -> http.client.HTTPResponse:
        """An answer that is none of a fault's."""
        connection.request("POST", f"/{verb}", json.dumps(given))
        answer = connection.getresponse()
        if answer.status == 200:
            return answer
        said = json.loads(answer.read())
        raise _FAULTS.get(said.get("kind"), StartError)(said.get("message", ""))
