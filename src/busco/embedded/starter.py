"""What starts the containers of ECS tasks, and all that it does: start, wait, end, read output, take away.

It checks by itself what it is asked for (`task_shape`), as if whoever asks were hostile, and touches no container but
its own. In Docker Compose it is a service of its own, the only one with Docker's socket (`starter_service`). On a
laptop it is part of the local AWS's process, which has its developer's rights to Docker anyway: a second process of the
same user would be no wall.
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

TIMEOUT = 60.0  # seconds; a busy machine takes its time to start a container
MOST_CONTAINERS = 100  # that one starter has at once
MOST_GRACE = 120  # seconds

logger = logging.getLogger(__name__)

Lines = list[tuple[int, str]]


class PullError(Exception):
    """An image is not here and can't be pulled."""


class StartError(Exception):
    """A container was not made or not started, with the reason of Docker or of the rules."""


class LostError(Exception):
    """A container is gone, or Docker doesn't say how it ended."""


@dataclass(frozen=True)
class Ended:
    """How a container ended."""

    code: int
    out_of_memory: bool


@dataclass(frozen=True)
class About:
    """What a starter is set up with.

    Args:
        image: the image of tasks.
        architecture: its processor architecture in Docker's words (`amd64`); empty where it is not here.
        folders: those that each container gets, path there → folder of Docker's machine.
    """

    image: str
    architecture: str
    folders: Mapping[str, str]


class TaskStarter(Protocol):
    """What the local ECS has of a starter, wherever that runs."""

    def about(self) -> About:
        """What it is set up with.

        Raises:
            LostError: Docker, or the starter, doesn't answer.
        """

    def start(self, order: Mapping[str, Any]) -> str:
        """Starts a container; gives its id. The same order again gives the same container.

        Args:
            order: as `task_shape.Order`.

        Raises:
            PullError: its image is not here and can't be pulled.
            StartError: Docker, or a rule, refused it; nothing of it is left.
        """

    def wait(self, container: str) -> None:
        """Returns when a container has ended or is gone, whatever happens to Docker meanwhile."""

    def end(self, container: str) -> Ended:
        """How a container ended. One that runs gets SIGTERM, and SIGKILL after its definition's stop timeout.

        Raises:
            LostError: it is gone, or Docker doesn't answer.
        """

    def lines(self, container: str) -> Iterator[Lines]:
        """A container's output until it ends, as `ecs_containers.lines`.

        Raises:
            LostError: it is gone, or Docker doesn't answer.
        """

    def remove(self, container: str) -> None:
        """Takes a container away, running or not, and the volume of its task if no other container has it."""

    def end_all(self, grace: int) -> int:
        """Ends and removes all containers and volumes of this starter; gives how many containers there were.

        Args:
            grace: seconds between SIGTERM and SIGKILL; 0: SIGKILL at once.

        Raises:
            LostError: Docker, or the starter, doesn't answer.
        """


class DockerStarter:
    """A starter that has Docker itself."""

    def __init__(self, client: Any, rules: Rules) -> None:
        """
        Args:
            client: docker-py's.
            rules: what is the same for all of its containers.
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
            asked = task_shape.order(order)
            # what costs a look at Docker comes after what doesn't
            task_shape.docker_arguments(asked, self._rules, 1, ())
            image = self._image(asked.definition.runtimePlatform.cpuArchitecture)
            declared = (image.attrs.get("Config") or {}).get("Volumes") or {}
            arguments = task_shape.docker_arguments(asked, self._rules, self._docker_cpus(), declared)
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
        """A container that this starter has started.

        Raises:
            LostError: there is none of that id, or it is somebody else's.
        """
        from docker.errors import NotFound

        if not re.fullmatch(r"[0-9a-f]{64}", container):
            raise LostError(f"{container[:80]!r} is no container's id")
        try:
            found = self._client.containers.get(container)
        except NotFound as error:
            raise LostError(reason(error)) from error
        if found.labels.get(OWNER_LABEL) != self._rules.owner:
            raise LostError(f"No such container: {container}")
        return found

    def _image(self, architecture: str) -> Any:
        """The image that is here, for whatever platform; else it is pulled, from where its name says."""
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
                raise StartError(f"{len(there)} containers are here, and no starter has more")
            made = self._client.containers.create(self._rules.image, **arguments)
            made.start()
        except (DockerException, OSError) as error:
            if made is not None:
                _quietly(made.remove, v=True, force=True)
            self._remove_volumes(f"{TASK_LABEL}={arguments['labels'][TASK_LABEL]}")
            raise StartError(reason(error)) from error
        return made

    def _of_name(self, arguments: Mapping[str, Any]) -> Any:
        """The container that was made by the same order, whose answer got lost; None if there is none."""
        from docker.errors import NotFound

        try:
            found = self._client.containers.get(arguments["name"])
        except NotFound:
            return None
        ours = found.labels.get(OWNER_LABEL) == self._rules.owner
        return found if ours and found.labels.get(TASK_LABEL) == arguments["labels"][TASK_LABEL] else None

    def _remove_volumes(self, label: str) -> None:
        """Removes this starter's volumes that carry the label and that no container uses."""

        def remove() -> None:
            for volume in self._client.volumes.list(filters={"label": [self._label, label]}):
                _quietly(volume.remove, force=True)

        _quietly(remove)

    def _docker_cpus(self) -> int:
        if not self._cpus:
            self._cpus = int(self._client.info()["NCPU"])
        return self._cpus


def reason(error: Exception) -> str:
    """What Docker gives as the reason of an error."""
    return str(getattr(error, "explanation", None) or error).strip()


def _quietly(call: Any, **arguments: Any) -> None:
    """Calls Docker where a refusal is no news, since all is taken away anyway."""
    from docker.errors import DockerException

    try:
        call(**arguments)
    except (DockerException, OSError) as error:
        logger.debug("event=docker_refused error=%s", error)
