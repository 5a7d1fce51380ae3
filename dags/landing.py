"""Operations on new objects for on-call to trigger: ingest missed objects, or replay messages that failed."""

from datetime import timedelta

import pendulum
from airflow.decorators import dag, task

from busco.orchestration.params import choice_param

RETRY = {"retries": 2, "retry_delay": timedelta(seconds=5), "retry_exponential_backoff": True}


@dag(
    dag_id="landing",
    description="Ingests missed objects of the landing bucket, or replays messages that failed",
    schedule=None,
    start_date=pendulum.datetime(2024, 1, 1, tz="UTC"),
    catchup=False,
    max_active_runs=1,
    default_args={"owner": "data-platform", "execution_timeout": timedelta(hours=2)},
    tags=["operations"],
    params={"action": choice_param("what to do", "reconcile", "replay_dead_letters")},
    doc_md=__doc__ + "\n\n`reconcile` ingests every object of the landing bucket that was never ingested, except those "
    "that were refused or deleted. "
    "`replay_dead_letters` sends the messages that could not be processed to the queue again, after the cause was "
    "fixed. New deliveries start the runs that they need. If the task fails, its log says why; it is safe to clear.\n\n"
    "[The queue, the last orders to ingest, and what is not published](/busco/events)",
)
def landing():
    @task(**RETRY)
    def work(params=None):
        from busco.orchestration import control

        {"reconcile": control.reconcile, "replay_dead_letters": control.replay_dead_letters}[params["action"]]()

    work()


landing()
