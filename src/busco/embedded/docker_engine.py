"""Which Docker engine, or which starter, runs the local ECS's tasks, and where its containers reach this machine."""

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
STARTER = "starter://"  # and the path of its socket: one that has Docker, where this process has not
BRIDGE = "bridge"  # Docker's default network, which a laptop's tasks are on
ANSWER_LIMIT = 10.0

logger = logging.getLogger(__name__)


def wanted(
    state: Path, asked: bool | None, execution: str, starter: str = "", environment: Mapping[str, str] = os.environ
) -> str:
    """The engine that the local AWS is to use, as in DOCKER_HOST, or STARTER and its path; empty for none.

    Args:
        state: the platform's state folder.
        asked: what was said this time; None leaves it as it was.
        execution: how models run, which decides where nothing was ever said.
        starter: the socket of a starter, which is used where there is one.
        environment: has DOCKER_HOST where the engine isn't at Docker's usual place.
    """
    engine = environment.get("DOCKER_HOST") or DEFAULT_HOST
    if starter:
        return f"{STARTER}{starter}"
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


def connect(engine: str, state: Path, image: str) -> TaskStarter:
    """What starts containers there: this process, or a starter.

    Args:
        engine: as `wanted` gives it.
        state: the platform's state folder: whose containers they are.
        image: the image that tasks run; a starter has its own word on that.

    Raises:
        LostError: Docker can't be reached.
    """
    if engine.startswith(STARTER):
        return SocketStarter(Path(engine.removeprefix(STARTER)))
    # Only dbt's environment has it.
    import docker

    try:
        client = docker.DockerClient(base_url=engine, timeout=TIMEOUT)
    except (docker.errors.DockerException, OSError) as error:
        raise LostError(reason(error)) from error
    return DockerStarter(client, Rules(image=image, network=BRIDGE, owner=owner(state), folders={}))


def bridge_address(engine: str) -> str:
    """The address on this machine that containers on Docker's default bridge reach it at.

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


def architecture(state: Path, name: str) -> str | None:
    """The processor architecture, in Docker's words (`amd64`), of the image that the local ECS runs by that name.

    Returns:
        None where there is no engine.

    Raises:
        BuscoError: it is not here, or Docker can't be reached.
        ImportError: this environment has no client of Docker's.
    """
    engine = _read(state)
    if engine in ("", OFF):
        return None
    try:
        about = connect(engine, state, name).about()
    except LostError as error:
        raise BuscoError(f"Docker can't be reached at {engine}: {error}", "is it running?") from error
    if about.image != name:
        raise BuscoError(f"tasks run the image {about.image} here, not {name}", "BUSCO_DBT_IMAGE names it")
    if not about.architecture:
        raise BuscoError(f"the image {name} is not here", "make image")
    return about.architecture


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


def end_left(state: Path) -> None:
    """Ends what a local AWS that was killed left running, on the engine that it had; no other's containers.

    Must only be called while none of this state folder runs.
    """
    engine = _read(state)
    if engine in ("", OFF):
        return
    try:
        connect(engine, state, "").end_all(grace=0)
    except LostError as error:
        logger.warning("event=containers_not_ended engine=%s error=%s", engine, error)


def owner(state: Path) -> str:
    """Whose containers those of this state folder's local AWS are, whatever its port.

    A folder may come to have another's path, so it has a name of its own as well.
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


def _path(state: Path) -> Path:
    return state / "docker"


def _read(state: Path) -> str:
    path = _path(state)
    return path.read_text().strip() if path.is_file() else ""
