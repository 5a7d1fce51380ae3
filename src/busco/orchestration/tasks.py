"""The building blocks of DAG files: the dbt graph's tasks, and the task that waits for the dbt docs."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.utils.task_group import TaskGroup

from busco.lake.records import DOCS_NODE
from busco.orchestration.operators import FollowOperator
from busco.orchestration.outline import Outline, outlined
from busco.project import Project
from busco.settings import Settings

# The run's own runner reports the docs when it ends. A runner that has not done so within this time is considered
# stuck.
_LIMIT = timedelta(hours=6)


def dbt_outline(settings: Settings, group_id: str) -> Outline:
    """Returns the outline of a task group with one group per model, which contains the model's task followed by its
    tests. A joint test is one task, downstream of all of its models. `outline.group_of` adds the group to a DAG.

    The function reads only the manifest and its outline: it does not run dbt or open a connection.

    Raises:
        BuscoError: the project has not been parsed here.
    """

    def render() -> TaskGroup:
        # imported here: Cosmos takes a second to import, and a cached outline does not need it
        from busco.orchestration import graph

        group: TaskGroup = graph.dbt_tasks(settings, group_id)
        return group

    def about() -> tuple[str, list[str]]:
        project = Project.of(settings)
        return project.identity, sorted(contract.name for contract in project.contracts)

    return outlined(settings.manifest_path, [group_id, settings.model_dump_json()], render, about)


def docs_task(**kwargs: Any) -> FollowOperator:
    """Returns the task that waits for the docs of the run's versions."""
    return FollowOperator(
        task_id="docs",
        key=DOCS_NODE,
        nodes=[DOCS_NODE],
        along=[],
        label="docs",
        execution_timeout=_LIMIT,
        **kwargs,
    )
