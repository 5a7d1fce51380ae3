"""The smallest DAG: one task, which logs the live release. Copy this file to write your own DAG."""

from datetime import timedelta

import pendulum
from airflow.decorators import dag, task


@dag(
    dag_id="example",
    description="Logs the live release: the smallest DAG, a template for your own",
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
    doc_md=__doc__ + "\n\nIf the task fails, see its log: usually, the lake is unreachable. The task is safe to clear.",
)
def example():
    @task
    def live_release():
        # imported inside the task, because the scheduler parses this file frequently
        from busco.orchestration import control

        return control.live_release()

    live_release()


example()
