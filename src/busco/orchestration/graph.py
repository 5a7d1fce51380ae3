"""Turns the dbt graph into Airflow tasks: Cosmos renders the manifest, and our converters create the tasks."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.models.baseoperator import BaseOperator
from airflow.models.dag import DAG
from airflow.operators.empty import EmptyOperator
from airflow.utils.task_group import TaskGroup
from cosmos import DbtTaskGroup, ExecutionConfig, ProfileConfig, ProjectConfig, RenderConfig
from cosmos.constants import DbtResourceType, LoadMode, TestBehavior
from cosmos.dbt.graph import DbtNode

import busco.warehouse
from busco.orchestration import task_names
from busco.orchestration.operators import FollowOperator
from busco.project import Project
from busco.settings import Settings

# If a task has no result after this time, its runner is considered stuck: the task fails, and the runner is stopped.
_LIMIT = timedelta(hours=6)
_PROFILES = Path(busco.warehouse.__file__).parent / "dbt_package" / "profiles.yml"
Converter = Callable[..., BaseOperator]


def dbt_tasks(settings: Settings, group_id: str) -> DbtTaskGroup:
    """Returns a task group with the tasks of the dbt graph.

    The group has a subgroup for each model, in which the model's tests follow the model. A joint test runs once, after
    all of its models.

    This function only reads the manifest: it does not run dbt or open a connection. DAG files use `tasks.dbt_outline`,
    which calls this function once for each manifest.

    Raises:
        BuscoError: the project has not been parsed on this machine.
    """
    project = Project.of(settings)
    with tempfile.TemporaryDirectory() as folder:
        names = task_names.task_names(project)
        manifest, known = task_names.renamed(project, names, Path(folder))
        group = _rendered(settings, project, group_id, manifest, node_converter(project, names, known))
    _source_tests(project, group)
    _tests_gate(project, group)
    # record which graph Airflow has loaded, so that a caller can wait for a new graph before it starts a run: a run
    # that starts with the old graph would change while it is running
    group.dag.doc_md = f"{group.dag.doc_md or ''}\n\n{project.graph_mark}"
    return group


def _rendered(
    settings: Settings, project: Project, group_id: str, manifest: Path, converter: Converter
) -> DbtTaskGroup:
    return DbtTaskGroup(
        group_id=group_id,
        project_config=ProjectConfig(manifest_path=manifest, project_name=project.name),
        profile_config=ProfileConfig(
            profile_name="busco",
            target_name="lake",
            # Cosmos requires a profile file but does not read it: every runner uses the platform's profile
            profiles_yml_filepath=_PROFILES,
        ),
        execution_config=ExecutionConfig(dbt_project_path=settings.dbt_project),
        render_config=RenderConfig(
            load_method=LoadMode.DBT_MANIFEST,
            test_behavior=TestBehavior.AFTER_EACH,
            should_detach_multiple_parents_tests=True,
            emit_datasets=False,
            node_converters={
                DbtResourceType.MODEL: converter,
                DbtResourceType.SEED: converter,
                DbtResourceType.TEST: converter,
            },
            # with True, Cosmos would call the converter for whole groups, and two tasks would have the same name
            node_conversion_by_task_group=False,
        ),
    )


def node_converter(project: Project, names: Mapping[str, str], known: Mapping[str, str]) -> Converter:
    """Returns the converter that Cosmos calls for each model, for each model's tests, and for each joint test.

    Args:
        names: the result of `task_names.task_names`.
        known: for each unique id that Cosmos read, the node's id in the project (`task_names.renamed`).
    """
    unit_tests: dict[str, list[str]] = {}
    for test, model in sorted(project.unit_tests.items()):
        unit_tests.setdefault(model, []).append(test)

    joint = {f"{names[uid]}_test": uid for uid in project.joint_tests}
    keys = task_names.task_keys(project)

    def convert(dag: DAG, task_group: TaskGroup | None, node: DbtNode, task_id: str, **_: Any) -> BaseOperator:
        # For a joint test, Cosmos (1.15.1) passes whichever node it processed last. However, the task id is derived
        # from the test's name in `names`, so it identifies the test.
        uid = joint.get(task_id) or known[node.unique_id]
        place: dict[str, Any] = {"task_id": task_id, "dag": dag, "task_group": task_group}
        if uid in project.tests:
            return _follow(place, keys[uid], [uid], [], f"test {project.tests[uid]['name']}", joint=True)
        found = project.node(uid)
        if found["config"]["materialized"] == "ephemeral" and task_id != "test":
            return EmptyOperator(**place, trigger_rule="none_failed")
        own = list(project.own_tests.get(uid, ()))
        about = {
            "size": project.size(uid), "table": project.table_of(uid) or "", "unique_id": uid,
            "project": project.identity,
        }  # fmt: skip
        name = f"{found['schema']}.{found['alias']}"
        if task_id == "test":
            return _follow(place, task_names.tests_key(keys[uid]), own, [], f"tests of {name}", **about)
        nodes = [uid, *unit_tests.get(uid, [])]
        return _follow(place, keys[uid], nodes, own, f"{found['resource_type']} {name}", **about)

    return convert


def _follow(
    place: dict[str, Any], key: str, nodes: list[str], along: list[str], label: str, **more: Any
) -> FollowOperator:
    return FollowOperator(**place, key=key, nodes=nodes, along=along, label=label, execution_timeout=_LIMIT, **more)


def _tests_gate(project: Project, group: TaskGroup) -> None:
    """Makes models wait for upstream tests, as they do in the runner's `dbt build`.

    A model that is downstream of all models of a joint test waits for that test. A model that is downstream of a source
    with tests waits for those tests.
    """
    followers = [task for task in group.iter_tasks() if isinstance(task, FollowOperator)]
    models = {task.nodes[0]: task for task in followers if task.nodes[0] not in project.tests}
    for task in followers:
        for test in task.nodes:
            if test not in project.tests or (
                test not in project.joint_tests and task.trigger_kwargs["task"] != task_names.SOURCES_KEY
            ):
                continue
            gated = project.gates[test]
            # models downstream of a waiting model wait along with it
            first = [uid for uid in gated if uid in models and not gated & project.ancestors[uid]]
            for uid in first:
                if models[uid].task_id not in task.downstream_task_ids:
                    task >> models[uid]


def _source_tests(project: Project, group: TaskGroup) -> None:
    """Adds one task for all tests that only concern sources, since such tests belong to no model."""
    tests = sorted(test for source in project.sources for test in project.own_tests.get(source, ()))
    if tests:
        place = {"task_id": task_names.SOURCES_TASK, "task_group": group, "dag": group.dag}
        _follow(place, task_names.SOURCES_KEY, tests, [], "tests of the sources")
