"""The operator for model, test and docs tasks, which start and end in the triggerer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from airflow.exceptions import AirflowException, AirflowSkipException
from airflow.models.baseoperator import BaseOperator
from airflow.triggers.base import StartTriggerArgs
from airflow.utils import timezone
from airflow.utils.context import Context

from busco.orchestration.links import task_links
from busco.orchestration.triggers import FollowTrigger

_TRIGGER = f"{FollowTrigger.__module__}.{FollowTrigger.__qualname__}"


class FollowOperator(BaseOperator):
    """An Airflow task for one or more nodes of the dbt graph.

    Airflow ignores `retries`, callbacks and pools for a task that starts in the triggerer; the trigger itself retries
    after transient errors (docs/architecture.md).

    Args:
        key: the task's name in the run's records.
        nodes: the dbt unique ids whose results determine the task's state.
        along: the unique ids of further nodes to process if a runner is started for this task alone.
        label: the task's name in log messages.
        size: the size of an ECS task that is started for this task alone; '' means BUSCO_ECS_SIZE.
        joint: whether the task is a joint test.
        table: the table that the task builds or tests, `<layer>.<name>`; '' if there is none or more than one.
        unique_id: the model or seed that the task builds or tests; '' if there is none or more than one.
        project: the dbt project whose graph the task belongs to; users who can read the task can read that project's
            docs.
    """

    start_from_trigger = True
    ui_color = "#e8f1f2"

    def __init__(
        self,
        *,
        key: str,
        nodes: Sequence[str],
        along: Sequence[str],
        label: str,
        size: str = "",
        joint: bool = False,
        table: str = "",
        unique_id: str = "",
        project: str = "",
        **kwargs: Any,
    ) -> None:
        super().__init__(**{"trigger_rule": "none_failed", **kwargs, "retries": 0})
        self.operator_extra_links = task_links(table, unique_id, project)
        self.nodes = list(nodes)
        self.trigger_kwargs: dict[str, Any] = {
            "task": key,
            "nodes": list(nodes),
            "along": list(along),
            "label": label,
            "size": size,
            "joint": joint,
        }
        self.start_trigger_args = StartTriggerArgs(
            trigger_cls=_TRIGGER,
            next_method="ended",
            trigger_kwargs=self.trigger_kwargs,
            timeout=self.execution_timeout,
        )

    def execute(self, context: Context) -> None:
        """Defers to the same trigger. Called only if a worker executes the task, as in `dags test` or a backfill."""
        instance = context["ti"]
        if instance.start_date is None:
            # `dags test` does not set the start date, to which `_defer_task` adds the timeout (2.10.5, taskinstance.py)
            instance.start_date = timezone.utcnow()
        trigger = FollowTrigger(
            **self.trigger_kwargs,
            dag_id=instance.dag_id,
            run_id=instance.run_id,
            attempt=instance.try_number,
            end_task=False,
        )
        self.defer(trigger=trigger, method_name="ended", timeout=self.execution_timeout)

    def ended(self, context: Context, event: dict[str, str]) -> None:  # noqa: ARG002 (Airflow's signature)
        """Ends a task that a worker deferred.

        Raises:
            AirflowException: the task failed.
            AirflowSkipException: the task is not selected.
        """
        if event["details"]:
            self.log.info("dbt's log:\n%s", event["details"])
        if event["state"] == "failed":
            raise AirflowException(event["text"])
        if event["state"] == "skipped":
            raise AirflowSkipException(event["text"])
        self.log.info("%s", event["text"])
