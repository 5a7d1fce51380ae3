"""`busco doctor` in dbt's image, as an ECS task: the first thing to run on a new account.

Its log lists what the container could see of S3, Glue, its role, memory and disk, and what to mend. It is also the
smallest DAG that runs an ECS task: a file like this one, with a command of its own.
"""

from datetime import timedelta

import pendulum
from airflow.models.dag import DAG
from airflow.providers.amazon.aws.operators.ecs import EcsRunTaskOperator

from busco.orchestration.ecs_task import ecs_task_arguments
from busco.settings import get_settings

with DAG(
    "ecs_check",
    description="Runs busco doctor in dbt's image on ECS: is the account set up as the platform needs it?",
    schedule=None,
    start_date=pendulum.datetime(2024, 1, 1, tz="UTC"),
    catchup=False,
    max_active_runs=1,
    # no retries: what doctor finds does not pass by itself
    default_args={"owner": "data-platform", "execution_timeout": timedelta(minutes=10), "retries": 0},
    tags=["operations", "ecs"],
    doc_md=__doc__ + "\nRed? The log's last lines say what has failed and what to mend; then clear `doctor`. Nothing "
    "of doctor's in it? The container did not start: the log has ECS's reason (docs/operating.md).",
):
    EcsRunTaskOperator(
        task_id="doctor",
        **ecs_task_arguments(get_settings(), ["doctor"], size="small", timeout=timedelta(minutes=10)),
    )
