"""Routine cleanup: stops ECS tasks that no Airflow task follows."""

from datetime import timedelta

import pendulum
from airflow.decorators import dag, task

from busco.settings import get_settings

RETRY = {"retries": 2, "retry_delay": timedelta(seconds=10), "retry_exponential_backoff": True}


@dag(
    dag_id="maintenance",
    description="Stops ECS tasks of runs that no Airflow task follows any more, and frees their slots",
    schedule=get_settings().maintenance_cron,
    start_date=pendulum.datetime(2024, 1, 1, tz="UTC"),
    catchup=False,
    max_active_runs=1,
    default_args={"owner": "data-platform", "execution_timeout": timedelta(minutes=10)},
    tags=["operations"],
    doc_md=__doc__ + "\n\nThe log of `reap` has a line for each ECS task that was stopped, with the run and the "
    "reason. If `reap` fails, ECS or the lake did not respond. The next run tries again; `reap` is also safe to clear.",
)
def maintenance():
    @task(**RETRY)
    def reap():
        from busco.orchestration import reaper

        return reaper.reap()

    reap()


maintenance()
