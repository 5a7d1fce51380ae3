"""The local AWS and the graph's keeper as one process in the foreground: what a container of Docker Compose runs."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from busco.embedded import aws, docker_engine, keeper, keys, processes
from busco.embedded.ecs_containers import MOUNTED
from busco.errors import BuscoError
from busco.settings import SIZES, Settings, get_settings

# Seconds that it gets to end its tasks: docker-compose.yml gives its container somewhat more.
GRACE = 60.0

Say = Callable[[str], None]


def serve(settings: Settings, say: Say, after_start: Callable[[], None]) -> None:
    """Starts the local AWS, keeps Airflow's graph, and ends both on SIGTERM.

    Raises:
        BuscoError: the local AWS did not start, or has ended.
    """
    stop = threading.Event()
    for one in (signal.SIGTERM, signal.SIGINT):
        signal.signal(one, lambda *_: stop.set())
    state = settings.state.resolve()
    _ready(state).unlink(missing_ok=True)
    try:
        endpoint = aws.up(settings, say, after_start=after_start)
        settings = get_settings()
        engine = docker_engine.wanted(state, None, settings.execution)
        if mounts := docker_engine.mounts_of_this_container(engine, MOUNTED):
            _mount(aws.client("ecs", endpoint, settings.region, keys.owner(state)), settings, mounts)
            say(f"ECS tasks run what is in {' and '.join(mounts.values())}")
        graph = settings.model_copy(update={"state_dir": settings.graph_dir or settings.state})
        if not graph.manifest_path.is_file():
            keeper.parse(graph, say)
        keeping = threading.Thread(target=keeper.keep, args=(graph, stop, say), name="keeper", daemon=True)
        keeping.start()
        _ready(state).write_text(json.dumps({"pid": os.getpid()}))
        while not stop.wait(1.0):
            if processes.find(state, aws.NAME) is None:
                raise BuscoError("the local AWS has ended", f"see {state / 'log' / aws.NAME}.log")
            if not keeping.is_alive():
                raise BuscoError("the keeper of Airflow's graph has ended", "its last lines say why")
    finally:
        stop.set()
        _ready(state).unlink(missing_ok=True)
        aws.down(settings, say, grace=GRACE)


def ready(settings: Settings) -> bool:
    """Whether a local AWS in the foreground has started all that it has, and answers."""
    try:
        pid = int(json.loads(_ready(settings.state).read_text())["pid"])
        os.kill(pid, 0)
    except (OSError, ValueError, KeyError):
        return False
    return dict(aws.status(settings))["local AWS"].startswith("running")


def _ready(state: Path) -> Path:
    return state / "run" / "serve.ready.json"


def _mount(ecs: Any, settings: Settings, mounts: Mapping[str, str]) -> None:
    """Registers a further revision of each task definition, with the same folders mounted as here, read-only.

    Production's templates stay as they are: this is for development, where what was saved runs without a new image.

    Args:
        mounts: path in a container → folder of the machine that Docker runs on.
    """
    names = {target: target.strip("/").replace("/", "-") for target in mounts}
    volumes = [{"name": names[target], "host": {"sourcePath": source}} for target, source in mounts.items()]
    points = [{"sourceVolume": names[target], "containerPath": target, "readOnly": True} for target in mounts]
    for size in SIZES:
        family = getattr(settings, f"ecs_task_definition_{size}")
        known = ecs.describe_task_definition(taskDefinition=family)["taskDefinition"]
        given = {name: known[name] for name in REGISTERED if known.get(name)}
        given["volumes"] = [*given.get("volumes", []), *volumes]
        for container in given["containerDefinitions"]:
            container["mountPoints"] = [*container.get("mountPoints", []), *points]
        ecs.register_task_definition(**given)


# what RegisterTaskDefinition takes of what DescribeTaskDefinition gives (ECS API reference)
REGISTERED = (
    "family", "taskRoleArn", "executionRoleArn", "networkMode", "containerDefinitions", "volumes",
    "requiresCompatibilities", "cpu", "memory", "ephemeralStorage", "runtimePlatform",
)  # fmt: skip
