"""The Docker engine that runs the local ECS's tasks: which one, and where its containers reach this machine."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import time
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from busco.errors import BuscoError

DEFAULT_HOST = "unix:///var/run/docker.sock"
OFF = "off"
OWNER_LABEL = "ministack.instance"
TIMEOUT = 10.0

logger = logging.getLogger(__name__)


class PullError(Exception):
    """An image is not here and can't be pulled."""


class StartError(Exception):
    """Docker refused to make or start a container."""


class LostError(Exception):
    """A container is gone, or Docker doesn't say how it ended."""


@dataclass(frozen=True)
class Ended:
    """How a container ended."""

    code: int
    out_of_memory: bool


def wanted(state: Path, asked: bool | None, execution: str, environment: Mapping[str, str] = os.environ) -> str:
    """The engine that the local AWS is to use, as in DOCKER_HOST; empty for none.

    Args:
        state: the platform's state folder.
        asked: what was said this time; None leaves it as it was.
        execution: how models run, which decides where nothing was ever said.
        environment: has DOCKER_HOST where the engine isn't at Docker's usual place.
    """
    engine = environment.get("DOCKER_HOST") or DEFAULT_HOST
    if asked is not None:
        return engine if asked else ""
    remembered = _read(state)
    if remembered:
        return "" if remembered == OFF else remembered
    return engine if execution in ("ecs", "ecs_shared") else ""


def remember(state: Path, engine: str, asked: bool | None) -> None:
    """Keeps the engine for a later start; that there is none, only where somebody asked for none."""
    kept = engine or (OFF if asked is False else "")
    if kept and kept != _read(state):
        _path(state).write_text(f"{kept}\n")


def bridge_address(engine: str) -> str:
    """The address on this machine that containers on Docker's default bridge reach it at.

    Raises:
        BuscoError: Docker can't be reached, or its bridge is not on this machine.
    """
    # Only dbt's environment has it.
    import docker

    try:
        client = docker.DockerClient(base_url=engine, timeout=TIMEOUT)
        try:
            bridge = client.networks.get("bridge").attrs
        finally:
            client.close()
    except (docker.errors.DockerException, OSError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise BuscoError(
            f"Docker can't be reached at {engine}: {reason}",
            "start Docker, or set DOCKER_HOST; without containers: busco aws up --no-docker",
        ) from error
    # An engine that was never restarted names no gateway, but the interface, whose address it is.
    named = [one["Gateway"] for one in bridge["IPAM"]["Config"] or [] if "Gateway" in one]
    interface = bridge["Options"].get("com.docker.network.bridge.name", "docker0")
    here = {
        name: [one.address for one in addresses if one.family == socket.AF_INET]
        for name, addresses in psutil.net_if_addrs().items()
    }
    for address in [*named, *here.get(interface, [])]:
        if any(address in addresses for addresses in here.values()):
            return str(address)
    raise BuscoError(
        f"Docker's bridge {interface} ({', '.join(named) or 'no address'}) is not on this machine: containers can't "
        "reach the local AWS",
        "use a Docker engine that runs on this Linux; without containers: busco aws up --no-docker",
    )


def mounts_of_this_container(engine: str, targets: Collection[str]) -> dict[str, str]:
    """Which of these paths are folders of the engine's machine, mounted into the container that this process is in.

    Args:
        engine: as in DOCKER_HOST.

    Returns:
        Path here → folder there; empty outside of a container, or without an engine.
    """
    import docker

    if not engine:
        return {}
    client = docker.DockerClient(base_url=engine, timeout=TIMEOUT)
    try:
        mounts = client.containers.get(socket.gethostname()).attrs["Mounts"]
    except docker.errors.NotFound:
        return {}
    finally:
        client.close()
    return {one["Destination"]: one["Source"] for one in mounts if one["Destination"] in targets}


def architecture(state: Path, name: str) -> str | None:
    """The processor architecture, in Docker's words (`amd64`), of the image that the local ECS runs by that name.

    Returns:
        None where there is no engine.

    Raises:
        BuscoError: it is not here, or Docker can't be reached.
        ImportError: this environment has no client of Docker's.
    """
    import docker

    engine = _read(state)
    if engine in ("", OFF):
        return None
    try:
        client = docker.DockerClient(base_url=engine, timeout=TIMEOUT)
        try:
            return str(client.images.get(name).attrs["Architecture"])
        finally:
            client.close()
    except docker.errors.ImageNotFound as error:
        raise BuscoError(f"the image {name} is not here", "make image") from error
    except (docker.errors.DockerException, OSError) as error:
        raise BuscoError(f"Docker can't be reached at {engine}: {_reason(error)}", "is it running?") from error


def status(arguments: Mapping[str, str], ecs: Any) -> list[tuple[str, str]]:
    """What to show of a running local AWS: its engine, where containers find it, and the ECS tasks that run.

    Args:
        arguments: those of its process.
        ecs: a client of its ECS.
    """
    engine, address = (arguments.get(f"--{name}", "") for name in ("docker-host", "tasks"))
    if not engine:
        return [("Docker", "off: ECS starts no containers")]
    tasks: list[dict[str, Any]] = []
    for cluster in ecs.list_clusters()["clusterArns"]:
        for page in ecs.get_paginator("list_tasks").paginate(cluster=cluster):
            if page["taskArns"]:
                tasks += ecs.describe_tasks(cluster=cluster, tasks=page["taskArns"])["tasks"]
    names = [" ".join(one[key].rpartition("/")[2] for key in ("taskDefinitionArn", "taskArn")) for one in tasks]
    return [
        ("Docker", f"{engine}, containers reach it at http://{address}"),
        ("ECS tasks", "\n  ".join([f"{len(names)} running", *names])),
    ]


def image(client: Any, name: str, platform: str | None) -> Any:
    """The image that is here under that name, for whatever platform; else it is pulled, from where its name says.

    Raises:
        PullError: it can't be pulled, with Docker's reason.
    """
    from docker.errors import DockerException, ImageNotFound

    try:
        return client.images.get(name)
    except ImageNotFound:
        pass
    try:
        # Not `client.images.pull`: MiniStack has that one try other registries.
        progress = client.api.pull(name, stream=True, decode=True, platform=platform)
        if failures := [one["error"] for one in progress if "error" in one]:
            raise PullError(failures[-1])
        return client.images.get(name)
    except (DockerException, OSError) as error:
        raise PullError(_reason(error)) from error


def started(client: Any, name: str, options: Mapping[str, Any]) -> Any:
    """A container of that image, started.

    Raises:
        StartError: Docker refused it; nothing of it is left.
    """
    from docker.errors import APIError

    made = None
    try:
        made = client.containers.create(name, **options)
        made.start()
    except APIError as error:
        if made is not None:
            _quietly(made.remove, v=True, force=True)
        raise StartError(_reason(error)) from error
    return made


def wait_ended(client: Any, identifier: str) -> None:
    """Returns when a container has ended or is gone, whatever happens to Docker meanwhile."""
    from docker.errors import DockerException, NotFound

    while True:
        try:
            client.api.wait(identifier, timeout=None)
        except NotFound:
            return
        except (DockerException, OSError):
            time.sleep(1)
        else:
            return


def ended(client: Any, identifier: str, grace_label: str) -> Ended:
    """How a container ended. One that still runs gets SIGTERM, and SIGKILL after the seconds that its label says.

    Raises:
        LostError: it is gone, or Docker doesn't answer.
    """
    from docker.errors import DockerException

    try:
        container = client.containers.get(identifier)
        if container.status in ("running", "paused"):
            _quietly(container.stop, timeout=int(container.labels[grace_label]))
            container.reload()
        state = container.attrs["State"]
    except (DockerException, OSError) as error:
        raise LostError(_reason(error)) from error
    return Ended(int(state["ExitCode"]), bool(state.get("OOMKilled")))


def end_left(state: Path) -> None:
    """Ends what a local AWS that was killed left running, on the engine that it had; no other's containers.

    Must only be called while none of this state folder runs.
    """
    import docker

    engine = _read(state)
    if engine in ("", OFF):
        return
    try:
        client = docker.DockerClient(base_url=engine, timeout=TIMEOUT)
        try:
            end_containers(client, owner_label(state), grace=0)
        finally:
            client.close()
    except (docker.errors.DockerException, OSError) as error:
        logger.warning("event=containers_not_ended engine=%s error=%s", engine, _reason(error))


def owner(state: Path) -> str:
    """Whose containers those of this state folder's local AWS are, whatever its port.

    A folder in a container has the same path in each stack of a machine, so it has a name of its own as well.
    """
    state = state.resolve()
    file = state / "docker-owner"
    state.mkdir(parents=True, exist_ok=True)
    try:
        with file.open("x") as made:
            made.write(secrets.token_hex(8))
    except FileExistsError:
        pass
    return f"{state}#{file.read_text().strip()}"


def owner_label(state: Path) -> str:
    """The label that all of these containers and their volumes carry."""
    return f"{OWNER_LABEL}={owner(state)}"


def end_containers(client: Any, label: str, grace: int) -> int:
    """Ends and removes all containers that carry the label, and their volumes; returns how many there were.

    They get SIGTERM, and SIGKILL after `grace` seconds.
    """
    found = client.containers.list(all=True, sparse=True, filters={"label": label})

    def end(container: Any) -> None:
        if grace:
            _quietly(container.stop, timeout=grace)
        _quietly(container.remove, v=True, force=True)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(end, found))
    remove_volumes(client, label)
    return len(found)


def remove_volumes(client: Any, label: str) -> None:
    """Removes the volumes that carry the label and that no container uses."""

    def remove() -> None:
        for volume in client.volumes.list(filters={"label": label}):
            volume.remove(force=True)

    _quietly(remove)


def _quietly(call: Any, **arguments: Any) -> None:
    """Calls Docker where a refusal is no news, since all is taken away anyway."""
    from docker.errors import DockerException

    try:
        call(**arguments)
    except (DockerException, OSError) as error:
        logger.debug("event=docker_refused error=%s", error)


def _reason(error: Exception) -> str:
    return str(getattr(error, "explanation", None) or error).strip()


def _path(state: Path) -> Path:
    return state / "docker"


def _read(state: Path) -> str:
    path = _path(state)
    return path.read_text().strip() if path.is_file() else ""
