"""Builds the dbt graph's tasks from an outline cached next to the manifest, so Cosmos renders each manifest only once.

Airflow parses a DAG file in a new process every time (the scheduler in its loop, a worker for each task), so an
in-memory cache would not survive. The outline is a JSON file that lists tasks, their arguments and their dependencies;
reading the file never executes code, whatever it contains.
"""

from __future__ import annotations

import gc
import hashlib
import importlib.metadata
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pendulum
from airflow.configuration import conf
from airflow.models.baseoperator import BaseOperator
from airflow.models.dag import DAG
from airflow.models.param import ParamsDict
from airflow.operators.empty import EmptyOperator
from airflow.utils.task_group import TaskGroup

from busco.errors import BuscoError
from busco.orchestration.operators import FollowOperator

log = logging.getLogger(__name__)

_KINDS: dict[str, type[BaseOperator]] = {kind.__name__: kind for kind in (FollowOperator, EmptyOperator)}
# Arguments that outlines do not store, since they are determined by where a task is added.
_PLACE = frozenset({"task_id", "dag", "task_group", "default_args", "params"})
# The number of outlines to keep per manifest: other task groups and other platform versions may render it too.
_KEPT = 8
Render = Callable[[], TaskGroup]
About = Callable[[], tuple[str, Sequence[str]]]


@dataclass(frozen=True)
class Outline:
    """A task group as plain data. Groups and tasks refer to each other by index.

    Attributes:
        project: the dbt project's identity.
        reads: the bronze tables that the project reads, `bronze.<name>`.
        doc: the text that the group adds to its DAG's documentation.
        groups: each group's name and its parent's index. The outermost group comes first, with -1 as its parent.
        tasks: each task's name, the index of its group, the name of its operator class, and its arguments.
        waits: for each task, the indexes of its upstream tasks.
        group_waits: for each group, the indexes of the groups and of the tasks that Airflow shows upstream of it.
        group_after: for each group, the indexes of the tasks that Airflow shows downstream of it.
    """

    doc: str
    groups: list[tuple[str, int]]
    tasks: list[tuple[str, int, str, dict[str, Any]]]
    waits: list[list[int]]
    group_waits: list[tuple[list[int], list[int]]]
    group_after: list[list[int]]
    project: str = ""
    reads: list[str] = field(default_factory=list)


def outlined(manifest: Path, given: Sequence[str], render: Render, about: About = lambda: ("", [])) -> Outline:
    """Returns the outline of the task group that `render` produces from a manifest.

    The group is rendered only if the manifest, `given` or the code has changed; otherwise the cached outline is used.

    Args:
        manifest: the file from which `render` and `about` read the graph.
        given: everything else that determines the group: its name and the settings.
        render: creates the group in the current DAG.
        about: returns the project's identity, and the bronze tables that it reads.

    Raises:
        BuscoError: the manifest is missing or can't be rendered.
    """
    try:
        key = _key(manifest, given)
    except FileNotFoundError as error:
        raise BuscoError("the dbt project has not been parsed here", "run: busco dbt parse") from error
    kept = manifest.with_name(f"{manifest.stem}.{key}.outline.json")
    outline = _load(kept)
    if outline is None:
        with (
            _no_collection(),
            # a scratch DAG, which Airflow does not add to the DAGs of this file
            DAG(
                "outline", schedule=None, start_date=pendulum.datetime(2024, 1, 1, tz="UTC"), auto_register=False
            ) as scratch,
        ):
            outline = outline_of(render(), scratch.doc_md or "", *about())
        _keep(kept, outline, manifest)
    return outline


def outline_of(group: TaskGroup, doc: str = "", project: str = "", reads: Sequence[str] = ()) -> Outline:
    """Returns the outline of a rendered group of a project that reads these bronze tables."""
    groups: dict[str | None, int] = {}
    named: list[tuple[str, int]] = []
    tasks: dict[str, int] = {}
    listed: list[tuple[str, int, str, dict[str, Any]]] = []
    found: list[BaseOperator] = []
    every: list[TaskGroup] = []

    def walk(one: TaskGroup, parent: int) -> None:
        number = groups[one.group_id] = len(named)
        named.append((one.label or "", parent))
        every.append(one)
        for child in one.children.values():
            if isinstance(child, TaskGroup):
                walk(child, number)
            elif isinstance(child, BaseOperator):
                tasks[child.task_id] = len(listed)
                found.append(child)
                listed.append((child.label or "", number, type(child).__name__, _arguments(child)))

    walk(group, -1)
    return Outline(
        doc=doc,
        groups=named,
        tasks=listed,
        waits=[sorted(tasks[above] for above in task.upstream_task_ids) for task in found],
        group_waits=[
            (
                sorted(groups[above] for above in one.upstream_group_ids),
                sorted(tasks[above] for above in one.upstream_task_ids),
            )
            for one in every
        ],
        group_after=[sorted(tasks[below] for below in one.downstream_task_ids) for one in every],
        project=project,
        reads=list(reads),
    )


def group_of(outline: Outline) -> TaskGroup:
    """Creates the outline's groups and tasks in the current DAG and task group."""
    groups: list[TaskGroup] = []
    for name, parent in outline.groups:
        groups.append(TaskGroup(group_id=name, parent_group=groups[parent] if parent >= 0 else None))
    dag = groups[0].dag
    if dag is None:
        raise ValueError("an outline can only be built inside a DAG")
    with _without_params(dag):
        tasks = [
            _KINDS[kind](task_id=name, dag=dag, task_group=groups[group], **arguments)
            for name, group, kind, arguments in outline.tasks
        ]
    # write directly to the sets that `>>` fills: `>>` itself would walk a group's roots and leaves for each edge
    for task, waits in zip(tasks, outline.waits, strict=True):
        for above in waits:
            task.upstream_task_ids.add(tasks[above].task_id)
            tasks[above].downstream_task_ids.add(task.task_id)
    for group, (above_groups, above_tasks), below in zip(groups, outline.group_waits, outline.group_after, strict=True):
        for number in above_groups:
            group.upstream_group_ids.add(groups[number].group_id)
            groups[number].downstream_group_ids.add(group.group_id)
        group.upstream_task_ids.update(tasks[number].task_id for number in above_tasks)
        group.downstream_task_ids.update(tasks[number].task_id for number in below)
    if outline.doc:
        dag.doc_md = f"{dag.doc_md or ''}{outline.doc}"
    return groups[0]


@contextmanager
def _no_collection() -> Iterator[None]:
    """Pauses garbage collection. Rendering a manifest creates millions of objects that all stay alive until the end;
    scanning them repeatedly for garbage would take half of the rendering time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@contextmanager
def _without_params(dag: DAG) -> Iterator[None]:
    """Hides the DAG's params while tasks are created. Airflow copies params into each task and validates every copy
    when it serializes the DAG; with 1,000 models, this takes three quarters of the serialization time. A task's context
    contains the DAG's params anyway (2.10.5, param.py, process_params)."""
    kept, dag.params = dag.params, ParamsDict()
    try:
        yield
    finally:
        dag.params = kept


def _arguments(task: BaseOperator) -> dict[str, Any]:
    if type(task).__name__ not in _KINDS:
        raise TypeError(f"{task.task_id} is a {type(task).__name__}, which outlines do not support: see _KINDS")
    # Airflow stores every operator's constructor arguments to support mapping (2.10.5, baseoperator.py, apply_defaults)
    given: Mapping[str, Any] = vars(task)["_BaseOperator__init_kwargs"]
    return {name: value for name, value in given.items() if name not in _PLACE}


# -- the file ---------------------------------------------------------------------------------------------------------


def _key(manifest: Path, given: Sequence[str]) -> str:
    """Returns a hash of everything that an outline depends on: the manifest, the rendering code and its settings."""
    digest = hashlib.sha256(manifest.read_bytes())
    for module in sorted([*Path(__file__).parent.glob("*.py"), Path(__file__).parents[1] / "project.py"]):
        digest.update(module.read_bytes())
    versions = [importlib.metadata.version(name) for name in ("apache-airflow", "astronomer-cosmos")]
    # also read from the environment: `getsection` misses a section that is defined only by environment variables
    cosmos = {**(conf.getsection("cosmos") or {}), **{k: v for k, v in os.environ.items() if "__COSMOS__" in k}}
    digest.update(json.dumps([*given, versions, sorted(cosmos.items())], default=str).encode())
    return digest.hexdigest()[:20]


def _load(path: Path) -> Outline | None:
    """Returns a cached outline; None if the file is missing or unreadable."""
    try:
        digest, body = path.read_text().split("\n", 1)
        if digest != _digest(body):
            raise ValueError("its checksum does not match")
        return Outline(**json.loads(body, object_hook=_decoded))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.warning("outline=%s unreadable, rendering the manifest again: %s", path.name, error)
        return None


def _keep(path: Path, outline: Outline, manifest: Path) -> None:
    """Caches an outline for the next parse. If the folder is not writable, logs a warning instead of failing."""
    body = json.dumps(vars(outline), default=_encoded, separators=(",", ":"))
    try:
        descriptor, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        with os.fdopen(descriptor, "w") as file:
            file.write(f"{_digest(body)}\n{body}")
        Path(scratch).chmod(0o644)
        Path(scratch).replace(path)
        for old in list(_by_age(manifest))[_KEPT:]:
            old.unlink(missing_ok=True)
    except OSError as error:
        log.warning("outline=%s not cached: %s", path.name, error)


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()


def _by_age(manifest: Path) -> Iterator[Path]:
    found = []
    for path in manifest.parent.glob(f"{manifest.stem}.*.outline.json"):
        with suppress(FileNotFoundError):
            found.append((path.stat().st_mtime, path))
    return (path for _, path in sorted(found, reverse=True))


def _encoded(value: Any) -> Any:
    if isinstance(value, timedelta):
        return {"seconds": value.total_seconds()}
    raise TypeError(f"{value!r} cannot be stored in an outline")


def _decoded(value: dict[str, Any]) -> Any:
    return timedelta(seconds=value["seconds"]) if value.keys() == {"seconds"} else value
