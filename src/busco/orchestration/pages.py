"""Builds the targets of tasks' links: AWS console URLs or, with a local endpoint, pages of Airflow's webserver."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from busco.aws import client
from busco.errors import BuscoError
from busco.lake.layout import EnvironmentLayout, run_key, split_table
from busco.lake.objects import ObjectStore
from busco.lake.records import Ending, Order, Release, Result, Runner
from busco.lake.releases import read_live
from busco.lake.runs import Run, open_run
from busco.orchestration.ecs import ending_of, log_stream
from busco.orchestration.ecs_task import started_by
from busco.orchestration.events_status import MOST_REFUSED, Status
from busco.orchestration.launch import process_ending
from busco.orchestration.places import LISTED, is_over
from busco.orchestration.whereabouts import Whereabouts, whereabouts
from busco.orchestration.words import athena_table_url, ecs_task_url, log_stream_url
from busco.processes import process_alive, this_host
from busco.settings import Settings
from busco.text import count

_LINES = 1000
_MOST_BYTES = 4 << 20  # bytes to read from the end of a log file: enough for 1,000 lines, unless they are very long
_ENDED = frozenset({"success", "failed", "skipped", "upstream_failed", "removed"})
_TIMES = {
    "created": "createdAt",
    "image pull started": "pullStartedAt",
    "started": "startedAt",
    "stopping": "stoppingAt",
    "stopped": "stoppedAt",
}


@dataclass(frozen=True)
class TaskTry:
    """One try of an Airflow task. `task` is the task's key within the run, `nodes` are the dbt unique ids whose results
    determine the task's state, and `state` is the try's state in Airflow ('' if it has none yet)."""

    dag_id: str
    run_id: str
    task: str
    nodes: tuple[str, ...]
    label: str
    attempt: int
    state: str

    @property
    def has_ended(self) -> bool:
        return self.state in _ENDED


@dataclass(frozen=True)
class Page:
    """A page as plain data, not HTML-escaped: `texts` are paragraphs, `facts` are name-value pairs, `columns` are a
    table's columns (name, type, comment), and `rows` are the rows of any other table, headings first. `reloads` is set
    while the content can still change."""

    title: str
    texts: tuple[str, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    log: str | None = None
    columns: tuple[tuple[str, str, str], ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    query: str = ""
    reloads: bool = False


# -- events -----------------------------------------------------------------------------------------------------------


def events_page(found: Status) -> Page:
    """Returns a page with the state of the events: what `busco events status` prints."""
    orders = []
    for order in found.orders:
        listed = "\n".join(f"{one.key}: {one.reason}" for one in order.refused[:MOST_REFUSED])
        orders.append((f"{order.ordered_at:%Y-%m-%d %H:%M:%S}", order.what, order.text, listed))
    return Page(
        "New objects in the landing bucket",
        (f"paused by {found.paused}; to continue: busco events resume",) if found.paused else (),
        (
            ("queue", found.queue),
            ("arrived", found.activity.text),
            *(
                (project.project, ": ".join(filter(None, (project.state, project.behind))))
                for project in found.projects
            ),
        ),
        rows=(("ordered (UTC)", "objects", "result", "refused"), *orders),
        reloads=True,
    )


# -- log stream and ECS task ------------------------------------------------------------------------------------------


def log_page(settings: Settings, task_try: TaskTry) -> Page | str:
    """Returns a page with the last 1,000 lines that the task's runner logged; on AWS, the URL of the log stream."""
    title = f"log stream of {task_try.label}"
    found = _found(settings, task_try, title)
    if isinstance(found, Page):
        return found
    run, where = found
    arn = _arn(settings, where)
    if not arn:
        assert where.runner is not None
        return _process_log(settings, task_try, run, where, title)
    stream = log_stream(settings, arn)
    if settings.endpoint_url is None:
        return log_stream_url(settings.region, settings.ecs_log_group, stream)
    try:
        answer = client("logs", settings).get_log_events(
            logGroupName=settings.ecs_log_group, logStreamName=stream, limit=_LINES, startFromHead=False
        )
    except ClientError as error:
        if _code(error) != "ResourceNotFoundException":
            raise
        text = f"The container has no output yet: CloudWatch has no log stream {stream} in {settings.ecs_log_group}."
        return Page(title, (text,), _runner_facts(where), reloads=not task_try.has_ended)
    lines = "\n".join(str(event["message"]).rstrip("\n") for event in answer["events"])
    text = f"Last {_LINES:,} lines of {stream} in {settings.ecs_log_group}:"
    return Page(title, (text,), _runner_facts(where), log=lines, reloads=not task_try.has_ended)


def ecs_page(settings: Settings, task_try: TaskTry) -> Page | str:
    """Returns a page that describes the ECS task of the task's runner; on AWS, the console URL of that ECS task."""
    title = f"ECS task of {task_try.label}"
    if settings.execution == "local":
        nothing = ("Models run as local processes (BUSCO_EXECUTION=local), so there is no ECS task.",)
    else:
        nothing = ("The runner of this task is not an ECS task.",)
    found = _found(settings, task_try, title)
    if isinstance(found, Page):
        return replace(found, texts=(*nothing, *found.texts)) if settings.execution == "local" else found
    _, where = found
    arn = _arn(settings, where)
    if not arn:
        return Page(title, nothing, _runner_facts(where, settings), reloads=not task_try.has_ended)
    if settings.endpoint_url is None:
        # arn:aws:ecs:<region>:<account>:task/<cluster>/<id>
        cluster, _, task_id = arn.split(":task/", 1)[1].rpartition("/")
        return ecs_task_url(settings.region, cluster or settings.ecs_cluster, task_id)
    answer = client("ecs", settings).describe_tasks(cluster=settings.ecs_cluster, tasks=[arn])
    described = (answer.get("tasks") or [None])[0]
    if described is None:
        text = "ECS no longer has this task: it expired, or ECS was restarted. The details come from the run's records."
        facts = (("ECS task", arn), *_runner_facts(where))
        return Page(title, (text,), facts, reloads=where.ending is None and not task_try.has_ended)
    ended = ending_of(described, settings.ecs_container) if is_over(described) else None
    facts = (("ECS task", arn), *_task_facts(described), *_runner_facts(where, seen=ended))
    return Page(title, (), facts, reloads=described.get("lastStatus") != "STOPPED")


def _found(settings: Settings, task_try: TaskTry, title: str) -> tuple[Run, Whereabouts] | Page:
    """Returns the run, and the task's runner or an order for which ECS has a task; a page if there is neither."""
    waits, key = not task_try.has_ended, run_key(task_try.dag_id, task_try.run_id)
    try:
        run = open_run(_store(settings), EnvironmentLayout(settings.environment), key)
    except BuscoError as error:
        if waits:
            return Page(title, ("The run is not pinned yet; its pin task has to finish first.",), reloads=True)
        return Page(title, (error.message, error.hint))
    where = whereabouts(run, task_try.task, task_try.nodes, task_try.attempt)
    if not where.is_selected:
        return Page(title, (f"This task is not selected in this run (select: {run.pin.select}).",))
    if where.runner is not None or (where.order is not None and _arn(settings, where)):
        return run, where
    if not waits:
        return Page(title, (f"Try {task_try.attempt} had no runner. State of the try in Airflow: {task_try.state}.",))
    return Page(title, (_waiting(settings, task_try, where.order),), reloads=True)


def _waiting(settings: Settings, task_try: TaskTry, order: Order | None) -> str:
    if order is None:
        state = task_try.state or "not scheduled"
        return f"No runner has been started for try {task_try.attempt} yet. State of the try in Airflow: {state}."
    if settings.execution == "local":
        return (
            f"A runner for the task ({order.name}) was requested but has not registered yet: it is starting, or "
            f"waiting for another runner to end (BUSCO_MAX_LOCAL_RUNNERS={settings.max_local_runners})."
        )
    return (
        f"A runner for the task ({order.name}) was requested but has no ECS task yet: it is waiting for a slot "
        f"(BUSCO_MAX_ECS_TASKS={settings.max_ecs_tasks}) or for ECS to start it. The task's log in Airflow shows which."
    )


def _arn(settings: Settings, where: Whereabouts) -> str:
    """Returns the ARN of the runner's ECS task, or '' if there is none. Queries ECS until the runner has registered."""
    if where.runner is not None:
        return where.runner.arn
    if where.order is None or not where.order.token or settings.execution == "local":
        return ""
    ecs = client("ecs", settings)
    for status in LISTED:
        answer = ecs.list_tasks(
            cluster=settings.ecs_cluster, startedBy=started_by(where.order.token), desiredStatus=status
        )
        if arns := answer.get("taskArns"):
            return str(arns[0])
    return ""


def _process_log(settings: Settings, task_try: TaskTry, run: Run, where: Whereabouts, title: str) -> Page:
    """Returns a page with a local runner's log file or, if the file is not on this host, dbt's log from the lake."""
    assert where.runner is not None
    runner, reloads = where.runner, not task_try.has_ended
    facts = _runner_facts(where, settings)
    if runner.host == this_host(settings.state) and (lines := _own_log(settings, runner.log)) is not None:
        return Page(title, (f"Last {_LINES:,} lines of {runner.log}:",), facts, log=lines, reloads=reloads)
    text = "The runner's log file is not on the webserver's host. This is dbt's log of the task so far:"
    logs = "\n".join(run.log(result.node, runner.number).rstrip() for result in where.results)
    return Page(title, (text,), facts, log=logs, reloads=reloads)


def _own_log(settings: Settings, name: str) -> str | None:
    """Returns the last lines of a runner's log file; None if it can't be read.

    Also returns None if `name`, which comes from a run's record, is the path of any other file."""
    file = Path(name).resolve()
    if not name or not file.is_relative_to((settings.state / "log" / "runners").resolve()):
        return None
    try:
        with file.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - _MOST_BYTES))
            last = deque(stream, _LINES)
    except OSError:
        return None
    return b"".join(last).decode(errors="replace")


def _runner_facts(
    where: Whereabouts, settings: Settings | None = None, seen: Ending | None = None
) -> tuple[tuple[str, str], ...]:
    """Returns a runner's details from the run's records.

    Args:
        settings: if given, details of a local runner's process are included.
        seen: how the runner's task ended according to ECS; an ending in the records is older and takes precedence.
    """
    runner = where.runner
    if runner is None:
        requested = f"requested as {where.order.name}" if where.order else ""
        return (("runner", f"{requested}; not registered yet"), *_end_facts(where.report, seen))
    facts = [("runner", f"{runner.number}, {_kind(runner)}")]
    if runner.size:
        facts.append(("size", runner.size))
    if runner.cpu or runner.memory:
        facts.append(("CPU and memory", f"{runner.cpu / 1024:g} vCPU, {runner.memory:,} MiB"))
    ending = where.ending or seen
    if not runner.arn and settings is not None:
        life = _life(settings, runner, ending)
        facts += [("host", runner.host), ("process", f"{runner.pid} ({life})")]
        facts.append(("started", _when(datetime.fromtimestamp(runner.started).astimezone())))
        if life == "ended" and ending is None:
            ending = Ending(number=runner.number, reason=process_ending())
    facts += _end_facts(where.report, ending)
    facts += [(result.node, f"{result.status} {result.message}".strip()) for result in where.results]
    return tuple(facts)


def _end_facts(report: Result | None, ending: Ending | None) -> list[tuple[str, str]]:
    """Returns how a runner ended. The runner's own report takes precedence over an ending that another process
    recorded, since such an ending states only that the runner is gone."""
    if report is not None and report.status == "error":
        return [("ended", f"with an error: {report.error or report.message}")]
    if report is not None:
        return [("ended", "normally, after completing all of its work")]
    if ending is None:
        return []
    return [("ended", ending.reason), *([("what to do", ending.hint)] if ending.hint else [])]


def _kind(runner: Runner) -> str:
    return "shared by the whole run" if runner.kind == "shared" else f"only for {count(len(runner.nodes), 'node')}"


def _life(settings: Settings, runner: Runner, ending: Ending | None) -> str:
    if ending is not None:
        return "gone"
    if runner.host != this_host(settings.state):
        return "not on the webserver's host"
    return "running" if process_alive(runner.pid, runner.started) else "ended"


def _task_facts(task: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns the details of an ECS task from DescribeTasks, without empty values."""
    definition = str(task.get("taskDefinitionArn") or "").rpartition("/")[2]
    facts = [
        ("status", f"{task.get('lastStatus')} (desired: {task.get('desiredStatus')})"),
        ("task definition", definition),
        ("CPU units and MiB", f"{task.get('cpu') or '?'}, {task.get('memory') or '?'}"),
        *((name, _when(task[key])) for name, key in _TIMES.items() if task.get(key)),
        ("stop code", str(task.get("stopCode") or "")),
        ("stopped reason", str(task.get("stoppedReason") or "")),
    ]
    for container in task.get("containers") or []:
        code = container.get("exitCode")
        parts = [str(container.get("lastStatus") or ""), "" if code is None else f"exit code {code}"]
        parts.append(str(container.get("reason") or ""))
        facts.append((f"container {container.get('name')}", ", ".join(part for part in parts if part)))
    return [(name, value) for name, value in facts if value]


# -- Athena table and dbt docs ----------------------------------------------------------------------------------------


def table_page(settings: Settings, table: str) -> Page | str:
    """Returns a page that describes a table as Athena sees it, from Glue; on AWS, the URL of Athena's query editor."""
    layer, name = split_table(table)
    database = settings.database(layer)
    if settings.endpoint_url is None:
        return athena_table_url(settings.region, database, name, settings.athena_workgroup)
    title = f"Athena table {database}.{name}"
    try:
        found = client("glue", settings).get_table(DatabaseName=database, Name=name)["Table"]
    except ClientError as error:
        if _code(error) != "EntityNotFoundException":
            raise
        return Page(title, ("Athena does not have this table: no version has been published yet.",))
    parameters = found.get("Parameters", {})
    columns = tuple(
        (column["Name"], column["Type"], column.get("Comment") or "")
        for column in found.get("StorageDescriptor", {}).get("Columns", [])
    )
    facts = [
        ("live version", parameters.get("busco.version", "")),
        ("introduced by release", parameters.get("busco.release", "")),
        ("rows", parameters.get("busco.rows", "")),
        ("partitioned by", parameters.get("busco.partition_by", "")),
        ("stale: built from older versions of", parameters.get("busco.stale", "")),
    ]
    listed = ",\n    ".join(f'"{column}"' for column, _, _ in columns)
    return Page(
        title,
        tuple(text for text in (found.get("Description") or "",) if text),
        tuple((name, value) for name, value in facts if value),
        columns=columns,
        query=f'select\n    {listed}\nfrom "{database}"."{name}"\nlimit 100',
    )


def described_projects(settings: Settings) -> frozenset[str]:
    """Returns the dbt projects that have docs in the live release."""
    live = _live(settings)
    return frozenset(live.docs_by_project()) if live is not None else frozenset()


def docs_fragment(settings: Settings, project: str, unique_id: str) -> Page | str:
    """Returns the URL fragment of a model or seed in a project's live docs, or a page if the project has no docs.

    The model or seed may also belong to a package that the project uses."""
    if project not in described_projects(settings):
        return Page(f"dbt docs of {unique_id}", ("There are no docs yet: the project has not been published.",))
    return f"#!/{unique_id.split('.')[0]}/{unique_id}"


def docs_html(settings: Settings, project: str) -> bytes | None:
    """Returns the dbt docs of a project in the live release as a self-contained page; None if there are none."""
    live = _live(settings)
    prefix = live.docs_by_project().get(project) if live is not None else None
    stored = _store(settings).get(f"{prefix}index.html") if prefix else None
    return stored.body if stored is not None else None


# -- AWS --------------------------------------------------------------------------------------------------------------


def _live(settings: Settings) -> Release | None:
    live = read_live(_store(settings), EnvironmentLayout(settings.environment))
    return live.release if live is not None else None


def _store(settings: Settings) -> ObjectStore:
    return ObjectStore(client("s3", settings), settings.lake_bucket)


def _when(moment: datetime) -> str:
    return moment.isoformat(sep=" ", timespec="seconds")


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))
