"""The dbt graph as Airflow tasks: Cosmos renders it from the manifest, our converters make the tasks."""

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

# A runner that has not come to a result by then is stuck; the task fails, and its runner is stopped.
_LIMIT = timedelta(hours=6)
# the task of all tests that are about sources alone
SOURCES = "sources.test"
_PROFILES = Path(busco.warehouse.__file__).parent / "dbt_package" / "profiles.yml"
Converter = Callable[..., BaseOperator]


def dbt_tasks(settings: Settings, group_id: str) -> DbtTaskGroup:
    """A task group with one group per model, its tests behind it, and tests over several models once, after all.

    Reads the manifest and nothing else: no dbt, no connection. DAG files have it by `tasks.dbt_tasks`, which comes here
    once for each manifest.

    Raises:
        BuscoError: the project was never parsed here.
    """
    project = Project.of(settings)
    with tempfile.TemporaryDirectory() as folder:
        names = task_names.task_names(project)
        manifest, known = task_names.renamed(project, names, Path(folder))
        group = _rendered(settings, project, group_id, manifest, node_converter(project, names, known))
    _source_tests(project, group)
    _tests_gate(project, group)
    # says which graph Airflow has: a run that is started on an older one would be changed under way
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
            # Cosmos wants one, and reads nothing of it: every runner brings the platform's
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
            # True would ask the converter for a whole group and name two tasks alike
            node_conversion_by_task_group=False,
        ),
    )


def node_converter(project: Project, names: Mapping[str, str], known: Mapping[str, str]) -> Converter:
    """The converter that Cosmos calls for each model, for each model's tests, and for each test over several models.

    Args:
        names: as `task_names.task_names` returns them.
        known: the unique ids that Cosmos has read → the project's (`task_names.renamed`).
    """
    unit_tests: dict[str, list[str]] = {}
    for test, model in sorted(project.unit_tests.items()):
        unit_tests.setdefault(model, []).append(test)

    joint = {f"{names[uid]}_test": uid for uid in project.joint_tests}

    def convert(dag: DAG, task_group: TaskGroup | None, node: DbtNode, task_id: str, **_: Any) -> BaseOperator:
        # for a test over several models Cosmos (1.15.1) hands over whatever node came last: its task id, which is made
        # of the name that it was given, tells the test
        uid = joint.get(task_id) or known[node.unique_id]
        key = uid.split(".", 2)[2]
        place: dict[str, Any] = {"task_id": task_id, "dag": dag, "task_group": task_group}
        if uid in project.tests:
            return _follow(place, key, [uid], [], f"test {project.tests[uid]['name']}", joint=True)
        said = project.node(uid)
        if said["config"]["materialized"] == "ephemeral" and task_id != "test":
            return EmptyOperator(**place, trigger_rule="none_failed")
        own = list(project.own_tests.get(uid, ()))
        about = {
            "size": project.size(uid), "table": project.table_of(uid) or "", "unique_id": uid,
            "project": project.identity,
        }  # fmt: skip
        name = f"{said['schema']}.{said['alias']}"
        if task_id == "test":
            return _follow(place, f"{key}.test", own, [], f"tests of {name}", **about)
        return _follow(place, key, [uid, *unit_tests.get(uid, [])], own, f"{said['resource_type']} {name}", **about)

    return convert


def _follow(
    place: dict[str, Any], key: str, nodes: list[str], along: list[str], label: str, **more: Any
) -> FollowOperator:
    return FollowOperator(**place, key=key, nodes=nodes, along=along, label=label, execution_timeout=_LIMIT, **more)


def _tests_gate(project: Project, group: TaskGroup) -> None:
    """What lies behind all models of a test over several, or behind a source that has tests, waits for them, as it does
    in the runner's `dbt build`."""
    followers = [task for task in group.iter_tasks() if isinstance(task, FollowOperator)]
    models = {task.nodes[0]: task for task in followers if task.nodes[0] not in project.tests}
    for task in followers:
        for test in task.nodes:
            if test not in project.tests or (
                test not in project.joint_tests and task.trigger_kwargs["task"] != SOURCES
            ):
                continue
            gated = project.gates[test]
            # what lies behind a model that waits, waits with it
            first = [uid for uid in gated if uid in models and not gated & project.ancestors[uid]]
            for uid in first:
                if models[uid].task_id not in task.downstream_task_ids:
                    task >> models[uid]


def _source_tests(project: Project, group: TaskGroup) -> None:
    """Tests of sources alone belong to no model: they have one task of their own."""
    tests = sorted(test for source in project.sources for test in project.own_tests.get(source, ()))
    if tests:
        place = {"task_id": task_names.SOURCES_TASK, "task_group": group, "dag": group.dag}
        _follow(place, SOURCES, tests, [], "tests of the sources")
