"""Defines the DAG of a dbt project: pin → the dbt graph → docs → publish → Glue."""

from __future__ import annotations

import logging
from datetime import timedelta
from pathlib import Path
from typing import Any

import pendulum
from airflow.datasets import DatasetAny
from airflow.decorators import task
from airflow.models.dag import DAG
from airflow.models.param import Param

from busco.orchestration.dag_names import bronze_dataset, project_tag
from busco.orchestration.outline import group_of
from busco.orchestration.params import text_param
from busco.orchestration.tasks import dbt_outline, docs_task
from busco.settings import get_settings

log = logging.getLogger(__name__)
_RETRY: dict[str, Any] = {"retries": 3, "retry_delay": timedelta(seconds=5), "retry_exponential_backoff": True}
_ON_CALL = (
    "If a task fails, open its log, which begins with the error and how to fix it. Then clear the task with "
    "*Downstream*: finished models are not rebuilt. The previous release stays live in the meantime."
)


def _alert(context: Any) -> None:
    from busco.orchestration import alerts

    alerts.failed_run(context)


def lakehouse_dag(
    dag_id: str,
    project_dir: Path | str | None = None,
    *,
    description: str,
    doc_md: str = "",
    owner: str = "data-platform",
    **kwargs: Any,
) -> DAG:
    """Returns a DAG that builds a dbt project on the lake, tests it, and publishes its tables together.

    The DAG runs whenever a bronze table that the project reads has new deliveries. The function only reads the
    project's manifest: it does not run dbt or open a connection.

    Args:
        dag_id: the DAG's id, which is also the name of the DAG's file.
        project_dir: the dbt project's folder, relative to the platform's home; None for the platform's own project.
        doc_md: what the DAG is for; instructions for on-call are appended.
        kwargs: further arguments for `airflow.DAG`; they override those that are set here, such as `schedule`. With
            another schedule, new deliveries do not start runs.

    Raises:
        BuscoError: the project has not been parsed on this machine.
    """
    settings, folder = get_settings().of_project(project_dir), str(project_dir or "")
    outline = dbt_outline(settings, "models")
    datasets = [bronze_dataset(table) for table in outline.reads]
    own = frozenset(dataset.uri for dataset in datasets)
    given: dict[str, Any] = {
        "schedule": DatasetAny(*datasets) if datasets else None,
        "start_date": pendulum.datetime(2024, 1, 1, tz="UTC"),
        "catchup": False,
        "max_active_runs": 1,
        "default_args": {"owner": owner, "execution_timeout": timedelta(minutes=30)},
        "tags": ["dbt", "lake"],
        "on_failure_callback": _alert,
        "params": {
            "select": text_param("what to build, in dbt's selection syntax; if empty, everything", most=4000),
            "full_refresh": Param(
                False, type="boolean", description="rebuild all selected models, even if nothing changed"
            ),
        },
        **kwargs,
    }
    given["tags"] = [*given["tags"], project_tag(outline.project)]
    dag = DAG(dag_id, description=description, doc_md=f"{doc_md}\n\n{_ON_CALL}", **given)
    with dag:

        @task.short_circuit(trigger_rule="all_success", **_RETRY)
        def pin(params: Any = None, ti: Any = None) -> str:
            from busco.orchestration import control, events

            everything = not params["select"] and not params["full_refresh"]
            if everything and (why := events.not_needed(ti.dag_run, folder, own)):
                log.info("nothing to do: %s; to build all the same, clear this task, or trigger the DAG", why)
                return ""  # skips the other tasks
            select, origin = params["select"] or "", str(ti.dag_run.id)
            return control.pin(
                ti.dag_id, ti.run_id, ti.try_number, origin, select, params["full_refresh"], project_dir=folder
            )

        @task(trigger_rule="none_failed", **_RETRY)
        def publish(ti: Any = None, **context: Any) -> str:
            from busco.orchestration import control, who

            return control.publish(ti.dag_id, ti.run_id, who.who_is(context))

        @task(trigger_rule="none_failed", **_RETRY)
        def glue() -> None:
            from busco.orchestration import control

            control.show()

        pin() >> group_of(outline) >> docs_task() >> publish() >> glue()
    return dag
