"""What a task's links lead to: the AWS console, or with a local endpoint a page of the webserver's own."""

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
from busco.orchestration.launch import process_ending
from busco.orchestration.places import LISTED, is_over
from busco.orchestration.whereabouts import Whereabouts, whereabouts
from busco.orchestration.words import athena_table_url, ecs_task_url, log_stream_url
from busco.processes import process_alive, this_host
from busco.settings import Settings

_LINES = 1000
_MOST_BYTES = 4 << 20  # of a log file that are looked at: a thousand lines, unless they are very long
_ENDED = frozenset({"success", "failed", "skipped", "upstream_failed", "removed"})
_TIMES = {
    "created": "createdAt",
    "image pulled from": "pullStartedAt",
    "started": "startedAt",
    "stopping": "stoppingAt",
    "stopped": "stoppedAt",
}


@dataclass(frozen=True)
class Asked:
    """One try of a task, as Airflow knows it: `task` is its key within its run, `nodes` the dbt unique ids whose
    results decide it, `state` Airflow's state of it now ('' is none yet)."""

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
    """A page as data, nothing of it escaped: `texts` are its sentences, `facts` names with their values, `columns`
    those of a table: name, type, comment. A page that will have more to say `reloads`."""

    title: str
    texts: tuple[str, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    log: str | None = None
    columns: tuple[tuple[str, str, str], ...] = ()
    query: str = ""
    reloads: bool = False


# -- log stream and ECS task ------------------------------------------------------------------------------------------


def log_page(settings: Settings, asked: Asked) -> Page | str:
    """What the task's runner printed, its last 1,000 lines; on AWS the address of its log stream."""
    title = f"log stream of {asked.label}"
    found = _found(settings, asked, title)
    if isinstance(found, Page):
        return found
    run, where = found
    arn = _arn(settings, where)
    if not arn:
        assert where.runner is not None
        return _process_log(settings, asked, run, where, title)
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
        said = f"CloudWatch has no stream {stream} in {settings.ecs_log_group} yet: its container has printed nothing"
        return Page(title, (said,), _runner_facts(where), reloads=not asked.has_ended)
    lines = "\n".join(str(event["message"]).rstrip("\n") for event in answer["events"])
    said = f"the last {_LINES:,} lines of {stream} in {settings.ecs_log_group}"
    return Page(title, (said,), _runner_facts(where), log=lines, reloads=not asked.has_ended)


def ecs_page(settings: Settings, asked: Asked) -> Page | str:
    """The ECS task that the task's runner is; on AWS the address of the console's page."""
    title = f"ECS task of {asked.label}"
    if settings.execution == "local":
        nothing = ("Models run as processes on this platform's machine (BUSCO_EXECUTION=local): there is no ECS task.",)
    else:
        nothing = ("Its runner is no ECS task.",)
    found = _found(settings, asked, title)
    if isinstance(found, Page):
        return replace(found, texts=(*nothing, *found.texts)) if settings.execution == "local" else found
    _, where = found
    arn = _arn(settings, where)
    if not arn:
        return Page(title, nothing, _runner_facts(where, settings), reloads=not asked.has_ended)
    if settings.endpoint_url is None:
        # arn:aws:ecs:<region>:<account>:task/<cluster>/<id>
        cluster, _, task_id = arn.split(":task/", 1)[1].rpartition("/")
        return ecs_task_url(settings.region, cluster or settings.ecs_cluster, task_id)
    answer = client("ecs", settings).describe_tasks(cluster=settings.ecs_cluster, tasks=[arn])
    described = (answer.get("tasks") or [None])[0]
    if described is None:
        said = "ECS does not know it any more: it has expired, or ECS was restarted. This is what the records say."
        facts = (("ECS task", arn), *_runner_facts(where))
        return Page(title, (said,), facts, reloads=where.ending is None and not asked.has_ended)
    ended = ending_of(described, settings.ecs_container) if is_over(described) else None
    facts = (("ECS task", arn), *_task_facts(described), *_runner_facts(where, seen=ended))
    return Page(title, (), facts, reloads=described.get("lastStatus") != "STOPPED")


def _found(settings: Settings, asked: Asked, title: str) -> tuple[Run, Whereabouts] | Page:
    """Where the task is: a runner, or the order of one that ECS may have a task for; a page where there is neither."""
    waits = not asked.has_ended
    try:
        run = open_run(_store(settings), EnvironmentLayout(settings.environment), run_key(asked.dag_id, asked.run_id))
    except BuscoError as error:
        if waits:
            return Page(title, ("Its run is not pinned yet: the task pin comes first.",), reloads=True)
        return Page(title, (error.message, error.hint))
    where = whereabouts(run, asked.task, asked.nodes, asked.attempt)
    if not where.is_selected:
        return Page(title, (f"The run has nothing to do for it (select: {run.pin.select}).",))
    if where.runner is not None or (where.order is not None and _arn(settings, where)):
        return run, where
    if not waits:
        return Page(title, (f"Try {asked.attempt} had no runner; Airflow has it as {asked.state}.",))
    return Page(title, (_waiting(settings, asked, where.order),), reloads=True)


def _waiting(settings: Settings, asked: Asked, order: Order | None) -> str:
    if order is None:
        return f"Airflow has it as {asked.state or 'not scheduled'}: no runner was started for try {asked.attempt} yet."
    if settings.execution == "local":
        return (
            f"Its runner ({order.name}) was ordered and has not said anything yet: it is starting, or waits for a "
            f"place among BUSCO_MAX_LOCAL_RUNNERS={settings.max_local_runners}."
        )
    return (
        f"Its runner ({order.name}) was ordered, and ECS has no task of it yet: it is waiting for a place among "
        f"BUSCO_MAX_ECS_TASKS={settings.max_ecs_tasks}, or for ECS to start it. The task's log in Airflow says which."
    )


def _arn(settings: Settings, where: Whereabouts) -> str:
    """The ARN of the runner's ECS task, asked of ECS while it has not registered itself; '' where there is none."""
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


def _process_log(settings: Settings, asked: Asked, run: Run, where: Whereabouts, title: str) -> Page:
    """A local runner's log file, if it is on this host; else dbt's log of the task's nodes, which the lake has."""
    assert where.runner is not None
    runner, reloads = where.runner, not asked.has_ended
    facts = _runner_facts(where, settings)
    if runner.host == this_host(settings.state) and (lines := _own_log(settings, runner.log)) is not None:
        return Page(title, (f"the last {_LINES:,} lines of {runner.log}",), facts, log=lines, reloads=reloads)
    said = "Its runner's log file is not on the webserver's host. This is dbt's log of the task, as far as it has got."
    logs = "\n".join(run.log(result.node, runner.number).rstrip() for result in where.results)
    return Page(title, (said,), facts, log=logs, reloads=reloads)


def _own_log(settings: Settings, name: str) -> str | None:
    """The last lines of a runner's log; None for any other file, whatever a record says."""
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
    """What the records say of a runner.

    Args:
        settings: to say also what is known of its process.
        seen: how ECS says that its task has ended; the records, which are older, go before it.
    """
    runner = where.runner
    if runner is None:
        ordered = f"ordered as {where.order.name}" if where.order else ""
        return (("runner", f"{ordered}; it has not registered itself yet"), *_end_facts(where.word, seen))
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
    facts += _end_facts(where.word, ending)
    facts += [(result.node, f"{result.status} {result.message}".strip()) for result in where.results]
    return tuple(facts)


def _end_facts(word: Result | None, ending: Ending | None) -> list[tuple[str, str]]:
    """How a runner has ended: what it said itself goes before what others saw, which is that it is gone."""
    if word is not None and word.status == "error":
        return [("ended", f"it could not do its work: {word.error or word.message}")]
    if word is not None:
        return [("ended", "by itself, when all of its work was done")]
    if ending is None:
        return []
    return [("ended", ending.reason), *([("what to do", ending.hint)] if ending.hint else [])]


def _kind(runner: Runner) -> str:
    return "the run's shared one" if runner.kind == "shared" else f"for {len(runner.nodes)} nodes alone"


def _life(settings: Settings, runner: Runner, ending: Ending | None) -> str:
    if ending is not None:
        return "gone"
    if runner.host != this_host(settings.state):
        return "not on the webserver's host"
    return "running" if process_alive(runner.pid, runner.started) else "ended"


def _task_facts(task: Mapping[str, Any]) -> list[tuple[str, str]]:
    """An ECS task as DescribeTasks has it; what it says in vain is left out."""
    definition = str(task.get("taskDefinitionArn") or "").rpartition("/")[2]
    facts = [
        ("status", f"{task.get('lastStatus')}, wanted {task.get('desiredStatus')}"),
        ("task definition", definition),
        ("CPU units and MiB", f"{task.get('cpu') or '?'}, {task.get('memory') or '?'}"),
        *((name, _when(task[key])) for name, key in _TIMES.items() if task.get(key)),
        ("stop code", str(task.get("stopCode") or "")),
        ("stopped reason", str(task.get("stoppedReason") or "")),
    ]
    for container in task.get("containers") or []:
        code = container.get("exitCode")
        said = [str(container.get("lastStatus") or ""), "" if code is None else f"exit code {code}"]
        said.append(str(container.get("reason") or ""))
        facts.append((f"container {container.get('name')}", ", ".join(part for part in said if part)))
    return [(name, value) for name, value in facts if value]


# -- Athena table and dbt docs ----------------------------------------------------------------------------------------


def table_page(settings: Settings, table: str) -> Page | str:
    """A table as Athena has it, by Glue; on AWS the address of Athena's query editor."""
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
        return Page(title, ("Athena does not have it: no version of it was published yet.",))
    parameters = found.get("Parameters", {})
    columns = tuple(
        (column["Name"], column["Type"], column.get("Comment") or "")
        for column in found.get("StorageDescriptor", {}).get("Columns", [])
    )
    facts = [
        ("live version", parameters.get("busco.version", "")),
        ("release", parameters.get("busco.release", "")),
        ("rows", parameters.get("busco.rows", "")),
        ("partitioned by", parameters.get("busco.partition_by", "")),
        ("stale: made from older versions of", parameters.get("busco.stale", "")),
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
    """The dbt projects that have docs in the live release."""
    live = _live(settings)
    return frozenset(live.docs_by_project()) if live is not None else frozenset()


def docs_fragment(settings: Settings, project: str, unique_id: str) -> Page | str:
    """Where in the live release's docs of a project a model or seed is described, also one of a package that the
    project uses; a page where there are none."""
    if project not in described_projects(settings):
        return Page(f"dbt docs of {unique_id}", ("There are no docs: nothing of its project was published yet.",))
    return f"#!/{unique_id.split('.')[0]}/{unique_id}"


def docs_html(settings: Settings, project: str) -> bytes | None:
    """dbt's docs of a project in the live release, a page that needs nothing else; None where there are none."""
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
