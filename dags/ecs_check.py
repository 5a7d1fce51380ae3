"""Runs `busco doctor` in the dbt image as an ECS task: the first DAG to run in a new account.

The task's log lists what the container found when it checked S3, Glue, its role, its memory and its disk, and what to
fix. This is also the smallest DAG that runs an ECS task: copy this file and change the command.
"""

from datetime import timedelta

import pendulum
from airflow.models.dag import DAG
from airflow.providers.amazon.aws.operators.ecs import EcsRunTaskOperator

from busco.orchestration.ecs_task import ecs_task_arguments
from busco.settings import get_settings

with DAG(
    "ecs_check",
    description="Checks that the AWS account is set up for the platform: runs busco doctor on ECS",
    schedule=None,
    start_date=pendulum.datetime(2024, 1, 1, tz="UTC"),
    catchup=False,
    max_active_runs=1,
    # no retries: the problems that doctor finds don't go away on their own
    default_args={"owner": "data-platform", "execution_timeout": timedelta(minutes=10), "retries": 0},
    tags=["operations", "ecs"],
    doc_md=__doc__ + "\nIf `doctor` fails, the last lines of its log state which check failed and how to fix the "
    "problem; fix it, then clear the task. If the log has no output from doctor, the container did not start, and the "
    "log states the reason that ECS reported (docs/operating.md).",
):
    EcsRunTaskOperator(
        task_id="doctor",
        **ecs_task_arguments(get_settings(), ["doctor"], size="small", timeout=timedelta(minutes=10)),
    )
