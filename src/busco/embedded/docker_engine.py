"""Selects the Docker engine or starter for the local ECS's tasks, and the address at which tasks reach this machine."""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from busco.embedded.starter import TIMEOUT, DockerStarter, LostError, TaskStarter, reason
from busco.embedded.starter_client import SocketStarter
from busco.embedded.task_shape import OWNER_LABEL, Rules
from busco.errors import BuscoError

DEFAULT_HOST = "unix:///var/run/docker.sock"
OFF = "off"
STARTER = "starter://"  # followed by the path of the socket of a starter, which can access Docker even if we can't
BRIDGE = "bridge"  # Docker's default network, which tasks use on a laptop
ANSWER_LIMIT = 10.0

logger = logging.getLogger(__name__)


def wanted(
    state: Path, choice: bool | None, execution: str, starter: str = "", environment: Mapping[str, str] = os.environ
) -> str:
    """Returns the engine for the local AWS: a URL as in DOCKER_HOST, or STARTER followed by a path; '' for none.

    Args:
        state: the platform's state folder.
        choice: whether to use an engine, if chosen explicitly; None keeps the previous choice.
        execution: how models run; used only if no choice has ever been made.
        starter: the path of a starter's socket; if set, that starter is used.
        environment: contains DOCKER_HOST if the engine isn't at Docker's default address.
    """
    engine = environment.get("DOCKER_HOST") or DEFAULT_HOST
    if starter:
        return f"{STARTER}{starter}"
    if choice is not None:
        return engine if choice else ""
    remembered = _read(state)
    if remembered:
        return "" if remembered == OFF else remembered
    return engine if execution in ("ecs", "ecs_shared") else ""


def remember(state: Path, engine: str, choice: bool | None) -> None:
    """Saves the engine for later starts; the choice of no engine is saved only if it was made explicitly."""
    kept = engine or (OFF if choice is False else "")
    if kept and kept != _read(state):
        _path(state).write_text(f"{kept}\n")


def connect(engine: str, state: Path, image: str) -> TaskStarter:
    """Connects to the component that starts containers: Docker itself, or a starter.

    Args:
        engine: the value from `wanted`.
        state: the platform's state folder, which identifies the owner of the containers.
        image: the image that tasks run; a starter has its own setting for the image.

    Raises:
        LostError: Docker can't be reached.
    """
    if engine.startswith(STARTER):
        return SocketStarter(Path(engine.removeprefix(STARTER)))
    # Only dbt's environment has this package.
    import docker

    try:
        client = docker.DockerClient(base_url=engine, timeout=TIMEOUT)
    except (docker.errors.DockerException, OSError) as error:
        raise LostError(reason(error)) from error
    return DockerStarter(client, Rules(image=image, network=BRIDGE, owner=owner(state), folders={}))


def bridge_address(engine: str) -> str:
    """Returns the address at which containers on Docker's default bridge reach this machine.

    Raises:
        BuscoError: Docker can't be reached, or its bridge is not on this machine.
    """
    import docker

    try:
        client = docker.DockerClient(base_url=engine, timeout=ANSWER_LIMIT)
        try:
            bridge = client.networks.get("bridge").attrs
        finally:
            client.close()
    except (docker.errors.DockerException, OSError) as error:
        last = str(error).strip().splitlines()[-1]
        raise BuscoError(
            f"Docker can't be reached at {engine}: {last}",
            "start Docker, or set DOCKER_HOST; to run without containers: busco aws up --no-docker",
        ) from error
    # An engine that has never been restarted doesn't report the bridge's gateway, but only the interface that has the
    # gateway's address.
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
        "use a Docker engine that runs on this machine; to run without containers: busco aws up --no-docker",
    )


def architecture(state: Path, name: str) -> str | None:
    """Looks up the CPU architecture of the image `name` that the local ECS runs.

    Returns:
        The architecture in Docker's spelling (`amd64`); None if there is no engine.

    Raises:
        BuscoError: the engine doesn't have the image, or Docker can't be reached.
        ImportError: this environment has no Docker client.
    """
    engine = _read(state)
    if engine in ("", OFF):
        return None
    try:
        about = connect(engine, state, name).about()
    except LostError as error:
        raise BuscoError(f"Docker can't be reached at {engine}: {error}", "check that Docker is running") from error
    if about.image != name:
        raise BuscoError(f"ECS tasks run the image {about.image}, not {name}", "set the image with BUSCO_DBT_IMAGE")
    if not about.architecture:
        raise BuscoError(f"the Docker engine doesn't have the image {name}", "build it: make image")
    return about.architecture


def status(arguments: Mapping[str, str], ecs: Any) -> list[tuple[str, str]]:
    """Returns a running local AWS's engine, address for containers and running ECS tasks, as (name, value) pairs.

    Args:
        arguments: the command-line arguments of the local AWS's process.
        ecs: a client of the local ECS.
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
        ("Docker", f"{engine}, containers reach the local AWS at http://{address}"),
        ("ECS tasks", "\n  ".join([f"{len(names)} running", *names])),
    ]


def end_left(state: Path) -> None:
    """Stops the containers that a killed local AWS of this state folder left running on its engine, and no others.

    Call this only while no local AWS of this state folder is running.
    """
    engine = _read(state)
    if engine in ("", OFF):
        return
    try:
        connect(engine, state, "").end_all(grace=0)
    except LostError as error:
        logger.warning("event=containers_not_ended engine=%s error=%s", engine, error)


def owner(state: Path) -> str:
    """Returns the name that marks containers as owned by this state folder's local AWS, whatever its port.

    A different folder can later have the same path, so the name also includes a random id that is kept in the folder.
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
    """Returns the label on all containers and volumes of this state folder's local AWS."""
    return f"{OWNER_LABEL}={owner(state)}"


def _path(state: Path) -> Path:
    return state / "docker"


def _read(state: Path) -> str:
    path = _path(state)
    return path.read_text().strip() if path.is_file() else ""
