"""Resolves a run's `select` to dbt nodes by running dbt, either on this machine or in an ECS task."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
from collections.abc import Sequence

from busco.aws import client
from busco.environments import python, without_airflow
from busco.errors import BuscoError
from busco.lake.layout import EnvironmentLayout
from busco.lake.objects import ObjectStore
from busco.lake.records import Selection
from busco.orchestration.launch import CannotStart, token_of
from busco.project import Project
from busco.settings import Settings

log = logging.getLogger(__name__)


def selected(settings: Settings, project: Project, select: str, attempt: Sequence[str]) -> list[str]:
    """Returns the dbt unique ids that a selection matches. If models run on ECS, an ECS task of the smallest size
    resolves the selection, so that Airflow's machine does not need dbt.

    Args:
        project: the project that Airflow's graph was built from.
        attempt: values that identify this try of this run.

    Raises:
        BuscoError: the selection matches nothing, dbt can't parse it, or no ECS task could be started.
    """
    if settings.execution == "local":
        return _here(settings, select)
    nodes = _on_ecs(settings, select, attempt)
    if unknown := [node for node in nodes if node not in project.nodes and node not in project.unit_tests]:
        raise BuscoError(
            f"the dbt image's project has {unknown[0]}, but the project in Airflow does not",
            "deploy the image and Airflow's manifest from the same commit",
        )
    return nodes


def _here(settings: Settings, select: str) -> list[str]:
    words = [str(python(settings, "dbt")), "-m", "busco", *_words(settings, select)]
    # overridden, since BUSCO_PROJECT_ID in this process's environment is the id of the platform's own project
    variables = without_airflow(dict(os.environ)) | {"BUSCO_PROJECT_ID": settings.project_id}
    result = subprocess.run(words, capture_output=True, text=True, check=False, cwd=settings.home, env=variables)
    if result.returncode != 0:
        raise BuscoError((result.stderr or result.stdout).strip())
    for note in result.stderr.splitlines():
        log.warning("%s", note)
    return [str(node) for node in json.loads(result.stdout.splitlines()[-1])]


def _words(settings: Settings, select: str, *options: str) -> list[str]:
    return ["select", "--project-dir", str(settings.dbt_project_dir), *options, "--", select]


def _on_ecs(settings: Settings, select: str, attempt: Sequence[str]) -> list[str]:
    store = ObjectStore(client("s3", settings), settings.lake_bucket)
    environment = EnvironmentLayout(settings.environment)
    for generation in range(1, settings.runner_restarts + 2):
        token = token_of(settings.environment, *attempt, "select", generation)
        why, may_pass = asyncio.run(_ask(settings, select, token, " ".join(attempt[:2])))
        found = store.read(environment.selection(token), Selection)
        if found is not None:
            if found.error:
                raise BuscoError(found.error)
            for note in found.notes:
                log.warning("%s", note)
            return list(found.nodes)
        if not may_pass:
            break
        log.warning("the ECS task that resolves the selection is gone: %s; starting another one", why)
    raise BuscoError(f"the ECS task that resolves the selection ended without a result: {why}")


async def _ask(settings: Settings, select: str, token: str, label: str) -> tuple[str, bool]:
    """Runs an ECS task that records what a selection matches. Returns why the task ended, and whether a retry may
    help."""
    from busco.orchestration.async_aws import forget_clients
    from busco.orchestration.ecs import EcsLauncher
    from busco.orchestration.slots import Slots

    launcher = EcsLauncher(settings, Slots.of_airflow(settings.max_ecs_tasks))
    try:
        task = await launcher.start_command(
            _words(settings, select, "--record", token), token, f"{label} select", log.info, "small"
        )
        ending = await launcher.end_of(task)
        return f"{ending.reason}\n{await launcher.output(task.arn)}".strip(), ending.passing
    except CannotStart as error:
        raise BuscoError(str(error)) from error
    finally:
        await forget_clients()
