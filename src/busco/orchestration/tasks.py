"""What DAG files are made of: the dbt graph's tasks, and the one that waits for its docs."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.utils.task_group import TaskGroup

from busco.lake.records import DOCS_NODE
from busco.orchestration.operators import FollowOperator
from busco.orchestration.outline import outlined
from busco.settings import Settings

# The docs are described at the end of the run's own runner; one that has no word on them by then is stuck.
_LIMIT = timedelta(hours=6)


def dbt_tasks(settings: Settings, group_id: str) -> TaskGroup:
    """A task group with one group per model, its tests behind it, and tests over several models once, after all.

    Reads the manifest and its outline and nothing else: no dbt, no connection.

    Raises:
        BuscoError: the project was never parsed here.
    """

    def render() -> TaskGroup:
        # here: Cosmos takes a second to import, which a parse of a known manifest is spared
        from busco.orchestration import graph

        group: TaskGroup = graph.dbt_tasks(settings, group_id)
        return group

    return outlined(settings.manifest_path, [group_id, settings.model_dump_json()], render)


def docs_task(**kwargs: Any) -> FollowOperator:
    """The task that waits for the docs of the run's versions."""
    return FollowOperator(
        task_id="docs",
        key=DOCS_NODE,
        nodes=[DOCS_NODE],
        along=[],
        label="docs",
        execution_timeout=_LIMIT,
        **kwargs,
    )
