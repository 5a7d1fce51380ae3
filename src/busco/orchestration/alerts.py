"""Sends one alert for each failed DAG run or check (what failed and why, which tables stay stale, and what to do), and
for each run that a hold keeps from being published."""

from __future__ import annotations

import logging
from typing import Any

from busco.aws import client
from busco.errors import BuscoError
from busco.lake.layout import EnvironmentLayout, run_key
from busco.lake.objects import ObjectStore
from busco.lake.records import Pin, Result
from busco.lake.runs import Run, open_run
from busco.orchestration.costs import run_cost
from busco.orchestration.words import stale_tables
from busco.project import Project
from busco.settings import Settings, get_settings
from busco.text import shown

log = logging.getLogger(__name__)

_SUBJECT = 100  # maximum length of a subject, in ASCII characters (SNS API reference, Publish)
_LISTED = 20


def failed_run(context: Any) -> None:
    """Publishes the alert for a failed DAG run to the configured topic.

    The function is a DAG's `on_failure_callback`. It never raises: if the alert can't be sent, the error goes to the
    log of Airflow's DAG processor.
    """
    try:
        settings = get_settings()
        run = context["dag_run"]
        failed = {task.task_id: _nodes(context["dag"], task.task_id) for task in run.get_task_instances(state="failed")}
        subject, text = alert(settings, run.dag_id, run.run_id, failed)
        _send(settings, subject, text)
    except Exception:
        log.exception("the alert could not be sent")


def failed_check(context: Any) -> None:
    """Publishes the alert for a task whose exception states what was found and what to do.

    The function is a task's `on_failure_callback`, which Airflow calls after the task's last try. It never raises.
    """
    try:
        settings, run, task = get_settings(), context["dag_run"], context["task_instance"].task_id
        lines = [f"{task} of DAG run {run.dag_id} / {run.run_id} has failed.", "", str(context["exception"])]
        if link := _link(settings, run.dag_id):
            lines += ["", link]
        _send(settings, f"{run.dag_id} failed: {task}", shown("\n".join(lines)) + "\n")
    except Exception:
        log.exception("the alert could not be sent")


def held_run(settings: Settings, dag_id: str, run_id: str, why: str) -> None:
    """Publishes the alert for a run that was not published because of a hold, so that its deliveries wait.

    It never raises: if the alert can't be sent, the error is logged.

    Args:
        why: who put publishing on hold, when, and for which reason.
    """
    try:
        lines = [f"DAG run {dag_id} / {run_id} is complete, but was not published: {why}.", ""]
        lines += ["The deliveries that it contains are published after the hold; the previous release stays live."]
        if link := _link(settings, dag_id):
            lines += ["", link]
        _send(settings, f"{dag_id} was not published: publishing is on hold", shown("\n".join(lines)) + "\n")
    except Exception:
        log.exception("the alert could not be sent")


def _link(settings: Settings, dag_id: str) -> str:
    """Returns the URL of a DAG's grid, or '' if Airflow's address is not known."""
    return f"{settings.airflow_url.rstrip('/')}/dags/{dag_id}/grid" if settings.airflow_url else ""


def _send(settings: Settings, subject: str, text: str) -> None:
    subject = subject.encode("ascii", "replace").decode()
    if len(subject) > _SUBJECT:
        subject = f"{subject[: _SUBJECT - 3]}..."
    log.error("%s\n%s", subject, text)
    if settings.alerts_topic:
        client("sns", settings).publish(TopicArn=settings.alerts_topic, Subject=subject, Message=text)


def _nodes(dag: Any, task_id: str) -> list[str]:
    """Returns the dbt nodes of a task; the list is empty for pin, publish and the like."""
    return list(getattr(dag.get_task(task_id), "nodes", []) if dag.has_task(task_id) else [])


def alert(settings: Settings, dag_id: str, run_id: str, failed: dict[str, list[str]]) -> tuple[str, str]:
    """Returns an alert's subject and text.

    Args:
        failed: the failed tasks, each with its dbt nodes.
    """
    names = [task.removeprefix("models.").removesuffix(".run").removesuffix("_run") for task in sorted(failed)]
    reason = f": {', '.join(names)}" if names else ", although no task failed"
    subject = f"{dag_id} failed{reason}"
    lines = [f"DAG run {dag_id} / {run_id} has failed. The previous release stays live.", ""]
    run = _run(settings, dag_id, run_id)
    results = run.latest_results() if run else {}
    for task, nodes in sorted(failed.items())[:_LISTED]:
        lines.append(f"{task}:")
        bad = [result for node in nodes if (result := results.get(node)) and result.status in ("failed", "error")]
        lines += [f"    {line}" for result in bad for line in _why(result)] or ["    see its log in Airflow"]
    if len(failed) > _LISTED:
        lines.append(f"and {len(failed) - _LISTED} more")
    if run is not None:
        if stale := stale_of(settings, run.pin, [node for nodes in failed.values() for node in nodes]):
            lines += ["", f"stale until this is fixed: {', '.join(stale)}"]
        if settings.execution != "local":
            lines += ["", str(run_cost(settings, run))]
    lines += ["", "What to do: open the failed task's log, fix the error, and clear the task with Downstream."]
    if link := _link(settings, dag_id):
        lines.append(link)
    return subject, shown("\n".join(lines).rstrip()) + "\n"


def stale_of(settings: Settings, pin: Pin, nodes: list[str]) -> tuple[str, ...]:
    """Returns the gold tables that stay stale after these nodes failed, or () if the project can't be read here."""
    try:
        project = Project.read(settings.of_project(pin.project_dir).manifest_path)
    except BuscoError:
        return ()
    return stale_tables(project, nodes)


def _run(settings: Settings, dag_id: str, run_id: str) -> Run | None:
    try:
        store = ObjectStore(client("s3", settings), settings.lake_bucket)
        return open_run(store, EnvironmentLayout(settings.environment), run_key(dag_id, run_id))
    except BuscoError:
        return None  # the run was never pinned


def _why(result: Result) -> list[str]:
    """Returns the first lines of a result's error, and where it occurred. Personal data is already masked."""
    lines = (result.error or result.message).strip().splitlines()[:4]
    return [*lines, f"at {result.where}"] if result.where else lines


def main() -> int:
    """Publishes an alert from the host: `python -m busco.orchestration.alerts SUBJECT`, with its text on stdin."""
    import sys

    if len(sys.argv) != 2:
        raise SystemExit("usage: python -m busco.orchestration.alerts SUBJECT <text")
    _send(get_settings(), sys.argv[1], shown(sys.stdin.read()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
