"""Checks once a day that the lake and Glue match the live release and the kept ones, and repairs differences on demand;
also checks that the landing bucket still notifies the queue of new objects."""

from datetime import timedelta

import pendulum
from airflow.decorators import dag, task

from busco.orchestration.params import choice_param
from busco.settings import get_settings


def alert(context):
    from busco.orchestration import alerts

    alerts.failed_check(context)


@dag(
    dag_id="drift",
    description="Finds changes that others have made in the lake, in Glue or in what the landing bucket notifies; "
    "repairs those in the lake and in Glue on demand",
    schedule=get_settings().drift_schedule or None,
    start_date=pendulum.datetime(2024, 1, 1, tz="UTC"),
    catchup=False,
    max_active_runs=1,
    default_args={"owner": "data-platform", "execution_timeout": timedelta(hours=1)},
    tags=["operations"],
    params={"action": choice_param("what to do; check changes nothing", "check", "repair")},
    doc_md=__doc__ + "\n\nFor each difference, the log states what was expected, what was found, when and by whom it "
    "was caused (if known), and what to do. `check` fails and sends an alert if there are any differences; `repair` "
    "fails if any are left.\n\n`notification` fails and sends an alert if the landing bucket does not notify the queue "
    "of all new objects: somebody has replaced the bucket's notifications, which only an administrator can change.",
)
def drift():
    # A release that has just gone live may not be shown in Glue yet, so a check is repeated before anyone is alerted.
    @task(retries=2, retry_delay=timedelta(minutes=5), on_failure_callback=alert)
    def compare(params=None, **context):
        from busco.orchestration import control, who

        if params["action"] == "repair":
            control.repair_drift(who.who_is(context))
        else:
            control.check()

    # A repair can't change the notification either: no role of the platform may.
    @task(retries=2, retry_delay=timedelta(minutes=5), on_failure_callback=alert)
    def notification():
        from busco.orchestration import control

        control.check_notification()

    compare()
    notification()


drift()
