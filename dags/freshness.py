"""Checks once a day that each source with a `freshness` in dbt has a recent delivery, and alerts if one has none."""

from datetime import timedelta

import pendulum
from airflow.decorators import dag, task

from busco.settings import get_settings


def alert(context):
    from busco.orchestration import alerts

    alerts.failed_check(context)


@dag(
    dag_id="freshness",
    description="Alerts if a source has no recent delivery, according to its freshness in dbt",
    schedule=get_settings().freshness_schedule or None,
    start_date=pendulum.datetime(2024, 1, 1, tz="UTC"),
    catchup=False,
    max_active_runs=1,
    default_args={"owner": "data-platform", "execution_timeout": timedelta(minutes=10)},
    tags=["operations"],
    doc_md=__doc__
    + "\n\nThe log lists the late sources. `warn_after` only writes to the log; `error_after` also fails "
    "the task and sends an alert. Sources without a `freshness` are not checked.",
)
def freshness():
    @task(retries=1, retry_delay=timedelta(minutes=1), on_failure_callback=alert)
    def check():
        from busco.orchestration import control

        control.check_freshness()

    check()


freshness()
