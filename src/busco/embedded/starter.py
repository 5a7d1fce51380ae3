"""Starts, waits for, stops and removes the containers of ECS tasks, and reads their output.

The starter validates every order itself (`task_shape`), as if the client were hostile, and touches no containers but
its own. In Docker Compose, the starter is a separate service, the only one with access to Docker's socket
(`starter_service`). On a laptop, it is part of the local AWS's process, which has the developer's access to Docker
anyway: a second process of the same user would add no isolation.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from busco.embedded import ecs_containers, task_shape
from busco.embedded.task_shape import OWNER_LABEL, TASK_LABEL, RefusedError, Rules

TIMEOUT = 60.0  # seconds; starting a container can take a while on a busy machine
MOST_CONTAINERS = 100  # per starter at the same time
MOST_GRACE = 120  # seconds

logger = logging.getLogger(__name__)

Lines = list[tuple[int, str]]


class PullError(Exception):
    """An image is not available locally and can't be pulled."""


class StartError(Exception):
    """A container could not be created or started; the message is Docker's reason or the rule that was violated."""


class LostError(Exception):
    """A container no longer exists, or Docker can't report its state."""


@dataclass(frozen=True)
class Ended:
    """How a container ended."""

    code: int
    out_of_memory: bool


@dataclass(frozen=True)
class About:
    """A starter's configuration.

    Args:
        image: the image that tasks run.
        architecture: the image's processor architecture as Docker names it (`amd64`); empty if the image is not
            available locally.
        folders: the folders mounted into each container: path in the container → folder on Docker's host.
    """

    image: str
    architecture: str
    folders: Mapping[str, str]


class TaskStarter(Protocol):
    """The interface that a starter offers to the local ECS, whether in the same process or behind a socket."""

    def about(self) -> About:
        """Returns the starter's configuration.

        Raises:
            LostError: Docker or the starter does not answer.
        """

    def start(self, order: Mapping[str, Any]) -> str:
        """Starts a container and returns its id. Repeating an order returns the existing container.

        Args:
            order: the fields of `task_shape.Order`.

        Raises:
            PullError: the image is not available locally and can't be pulled.
            StartError: Docker or a rule refused the order; no container is left behind.
        """

    def wait(self, container: str) -> None:
        """Waits until a container has ended or no longer exists, even if Docker fails meanwhile."""

    def end(self, container: str) -> Ended:
        """Stops a container if it is running (SIGTERM, then SIGKILL after its stop timeout); returns how it ended.

        Raises:
            LostError: the container no longer exists, or Docker does not answer.
        """

    def lines(self, container: str) -> Iterator[Lines]:
        """Yields a container's output until the container ends, like `ecs_containers.lines`.

        Raises:
            LostError: the container no longer exists, or Docker does not answer.
        """

    def remove(self, container: str) -> None:
        """Removes a container, even a running one, and its task's volume if no other container uses it."""

    def end_all(self, grace: int) -> int:
        """Stops and removes all containers and volumes of this starter; returns the number of containers.

        Args:
            grace: seconds between SIGTERM and SIGKILL; with 0, SIGKILL is sent immediately.

        Raises:
            LostError: Docker or the starter does not answer.
        """


class DockerStarter:
    """A starter with direct access to Docker."""

    def __init__(self, client: Any, rules: Rules) -> None:
        """
        Args:
            client: a docker-py client.
            rules: the settings that are the same for all of the starter's containers.
        """
        self._client = client
        self._rules = rules
        self._label = f"{OWNER_LABEL}={rules.owner}"
        self._cpus = 0

    def about(self) -> About:
        from docker.errors import DockerException, ImageNotFound

        try:
            self._client.ping()
            architecture = str(self._client.images.get(self._rules.image).attrs["Architecture"])
        except ImageNotFound:
            architecture = ""
        except (DockerException, OSError) as error:
            raise LostError(reason(error)) from error
        return About(self._rules.image, architecture, dict(self._rules.folders))

    def start(self, order: Mapping[str, Any]) -> str:
        from docker.errors import DockerException

        try:
            validated = task_shape.order(order)
            # First check everything that can be checked without a request to Docker.
            task_shape.docker_arguments(validated, self._rules, 1, ())
            image = self._image(validated.definition.runtimePlatform.cpuArchitecture)
            declared = (image.attrs.get("Config") or {}).get("Volumes") or {}
            arguments = task_shape.docker_arguments(validated, self._rules, self._docker_cpus(), declared)
        except RefusedError as error:
            raise StartError(str(error)) from error
        except (DockerException, OSError) as error:
            raise StartError(reason(error)) from error
        return str(self._started(arguments).id)

    def wait(self, container: str) -> None:
        from docker.errors import DockerException, NotFound

        while True:
            try:
                self._client.api.wait(self._own(container).id, timeout=None)
            except (NotFound, LostError):
                return
            except (DockerException, OSError):
                time.sleep(1)
            else:
                return

    def end(self, container: str) -> Ended:
        from docker.errors import DockerException

        try:
            found = self._own(container)
            if found.status in ("running", "paused"):
                _quietly(found.stop, timeout=int(found.labels[ecs_containers.STOP_TIMEOUT_LABEL]))
                found.reload()
            state = found.attrs["State"]
        except (DockerException, OSError) as error:
            raise LostError(reason(error)) from error
        return Ended(int(state["ExitCode"]), bool(state.get("OOMKilled")))

    def lines(self, container: str) -> Iterator[Lines]:
        from docker.errors import DockerException

        try:
            yield from ecs_containers.lines(self._client.api, self._own(container).id)
        except (DockerException, OSError) as error:
            raise LostError(reason(error)) from error

    def remove(self, container: str) -> None:
        from docker.errors import DockerException

        try:
            found = self._own(container)
        except (LostError, DockerException, OSError):
            return
        _quietly(found.remove, v=True, force=True)
        self._remove_volumes(f"{TASK_LABEL}={found.labels[TASK_LABEL]}")

    def end_all(self, grace: int) -> int:
        from docker.errors import DockerException

        try:
            found = self._client.containers.list(all=True, sparse=True, filters={"label": self._label})
        except (DockerException, OSError) as error:
            raise LostError(reason(error)) from error
        seconds = max(0, min(grace, MOST_GRACE))

        def end(container: Any) -> None:
            if seconds:
                _quietly(container.stop, timeout=seconds)
            _quietly(container.remove, v=True, force=True)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(end, found))
        self._remove_volumes(self._label)
        return len(found)

    def _own(self, container: str) -> Any:
        """Returns a container that this starter has started.

        Raises:
            LostError: there is no container with that id, or this starter has not started it.
        """
        from docker.errors import NotFound

        if not re.fullmatch(r"[0-9a-f]{64}", container):
            raise LostError(f"{container[:80]!r} is not a container id")
        try:
            found = self._client.containers.get(container)
        except NotFound as error:
            raise LostError(reason(error)) from error
        if found.labels.get(OWNER_LABEL) != self._rules.owner:
            raise LostError(f"No such container: {container}")
        return found

    def _image(self, architecture: str) -> Any:
        """Returns the local image, whatever its platform; if there is none, pulls it from the registry in the name."""
        from docker.errors import DockerException, ImageNotFound

        name, platform = self._rules.image, "linux/arm64" if architecture == "ARM64" else "linux/amd64"
        try:
            return self._client.images.get(name)
        except ImageNotFound:
            pass
        try:
            progress = self._client.api.pull(name, stream=True, decode=True, platform=platform)
            if failures := [one["error"] for one in progress if "error" in one]:
                raise PullError(failures[-1])
            return self._client.images.get(name)
        except (DockerException, OSError) as error:
            raise PullError(reason(error)) from error

    def _started(self, arguments: Mapping[str, Any]) -> Any:
        from docker.errors import DockerException

        made = None
        try:
            if (known := self._of_name(arguments)) is not None:
                if known.status == "created":
                    known.start()
                return known
            there = self._client.containers.list(all=True, sparse=True, filters={"label": self._label})
            if len(there) >= MOST_CONTAINERS:
                raise StartError(f"{len(there)} containers already exist, which is the limit")
            made = self._client.containers.create(self._rules.image, **arguments)
            made.start()
        except (DockerException, OSError) as error:
            if made is not None:
                _quietly(made.remove, v=True, force=True)
            self._remove_volumes(f"{TASK_LABEL}={arguments['labels'][TASK_LABEL]}")
            raise StartError(reason(error)) from error
        return made

    def _of_name(self, arguments: Mapping[str, Any]) -> Any:
        """Returns the container of an earlier, identical order whose response was lost; None if there is none."""
        from docker.errors import NotFound

        try:
            found = self._client.containers.get(arguments["name"])
        except NotFound:
            return None
        ours = found.labels.get(OWNER_LABEL) == self._rules.owner
        return found if ours and found.labels.get(TASK_LABEL) == arguments["labels"][TASK_LABEL] else None

    def _remove_volumes(self, label: str) -> None:
        """Removes this starter's volumes that have the label and that no container uses."""

        def remove() -> None:
            for volume in self._client.volumes.list(filters={"label": [self._label, label]}):
                _quietly(volume.remove, force=True)

        _quietly(remove)

    def _docker_cpus(self) -> int:
        if not self._cpus:
            self._cpus = int(self._client.info()["NCPU"])
        return self._cpus


def reason(error: Exception) -> str:
    """Returns the reason that Docker reports for an error."""
    return str(getattr(error, "explanation", None) or error).strip()


def _quietly(call: Any, **arguments: Any) -> None:
    """Calls Docker for cleanup, and ignores errors."""
    from docker.errors import DockerException

    try:
        call(**arguments)
    except (DockerException, OSError) as error:
        logger.debug("event=docker_refused error=%s", error)
