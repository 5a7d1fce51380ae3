"""The smallest DAG: one task, which says what is live. A DAG of your own begins as a copy of this file."""

from datetime import timedelta

import pendulum
from airflow.decorators import dag, task


@dag(
    dag_id="example",
    description="Says which release readers see: the smallest DAG, to begin one of your own with",
    schedule=None,
    start_date=pendulum.datetime(2024, 1, 1, tz="UTC"),
    catchup=False,
    max_active_runs=1,
    default_args={
        "owner": "data-platform",
        "execution_timeout": timedelta(minutes=5),
        "retries": 2,
        "retry_delay": timedelta(seconds=5),
        "retry_exponential_backoff": True,
    },
    tags=["example"],
    doc_md=__doc__ + "\n\nRed? Its log says why: mostly the lake can't be reached. It is safe to clear.",
)
def example():
    @task
    def live_release():
        # imported where it runs: the scheduler parses this file again and again
        from busco.orchestration import control

        return control.live_release()

    live_release()


example()
