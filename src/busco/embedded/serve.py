"""Runs the local AWS and the keeper of Airflow's graph in the foreground, for a Docker Compose container."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable

from busco.embedded import aws, docker_engine, health, keeper, processes
from busco.embedded.starter import LostError, TaskStarter
from busco.errors import BuscoError
from busco.settings import Settings, get_settings

# Seconds that the local AWS gets to stop ECS tasks on shutdown. The container's stop_grace_period in docker-compose.yml
# is somewhat longer.
GRACE = 60.0

Say = Callable[[str], None]


def serve(settings: Settings, say: Say, after_start: Callable[[], None]) -> None:
    """Starts the local AWS and the keeper of Airflow's graph, and stops both on SIGTERM.

    Raises:
        BuscoError: the local AWS did not start, or one of the two exited.
    """
    stop = threading.Event()
    for one in (signal.SIGTERM, signal.SIGINT):
        signal.signal(one, lambda *_: stop.set())
    state = settings.state.resolve()
    ready = health.record(state)
    ready.unlink(missing_ok=True)
    try:
        aws.up(settings, say, after_start=after_start)
        settings = get_settings()
        if engine := docker_engine.wanted(state, None, settings.execution, settings.starter):
            say(_code_of_tasks(docker_engine.connect(engine, state, settings.dbt_image)))
        graph = settings.model_copy(update={"state_dir": settings.graph_dir or settings.state})
        if not graph.manifest_path.is_file():
            keeper.parse(graph, say)
        keeping = threading.Thread(target=keeper.keep, args=(graph, stop, say), name="keeper", daemon=True)
        keeping.start()
        ready.write_text(json.dumps({"pid": os.getpid(), "endpoint": settings.endpoint_url}))
        while not stop.wait(1.0):
            if processes.find(state, aws.NAME) is None:
                raise BuscoError("the local AWS exited unexpectedly", f"see {state / 'log' / aws.NAME}.log")
            if not keeping.is_alive():
                raise BuscoError("the keeper of Airflow's graph stopped unexpectedly", "see its last log lines above")
    finally:
        stop.set()
        ready.unlink(missing_ok=True)
        aws.down(settings, say, grace=GRACE)


def _code_of_tasks(starter: TaskStarter) -> str:
    try:
        about = starter.about()
    except LostError as error:
        return f"ECS tasks can't be started yet: {error}"
    return f"ECS tasks run the code in {' and '.join(sorted(about.folders.values())) or about.image}"
