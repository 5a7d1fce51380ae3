"""Operations for on-call to trigger: roll back to an older release, or resume publishing."""

from datetime import timedelta

import pendulum
from airflow.decorators import dag, task
from airflow.operators.trigger_dagrun import TriggerDagRunOperator

from busco.orchestration.params import choice_param, text_param

RETRY = {"retries": 2, "retry_delay": timedelta(seconds=5), "retry_exponential_backoff": True}


@dag(
    dag_id="operations",
    description="Rolls back to an older release and puts publishing on hold, or resumes publishing",
    schedule=None,
    start_date=pendulum.datetime(2024, 1, 1, tz="UTC"),
    catchup=False,
    max_active_runs=1,
    default_args={"owner": "data-platform", "execution_timeout": timedelta(minutes=10)},
    tags=["operations"],
    params={
        "action": choice_param("what to do", "rollback", "resume"),
        "release": text_param("rollback: the release's id (see busco release list)", most=200),
        "reason": text_param("rollback: the reason, for the record", most=2000),
    },
    doc_md=__doc__ + "\n\n`rollback` needs a release and a reason. Runs continue to build, but nothing is published "
    "until `resume`, which also starts a new run. If a task fails, its log says why; the task is safe to clear.",
)
def operations():
    @task.branch
    def choose(params=None):
        return {"rollback": "rollback", "resume": "resume"}[params["action"]]

    @task(**RETRY)
    def rollback(params=None, **context):
        from busco.orchestration import control, who

        return control.rollback(params["release"] or "", params["reason"] or "", who.who_is(context))

    @task(**RETRY)
    def resume(**context):
        from busco.orchestration import control

        return control.resume(context)

    @task(trigger_rule="none_failed_min_one_success", **RETRY)
    def glue():
        from busco.orchestration import control

        control.show()

    rolled, resumed = rollback(), resume()
    choose() >> [rolled, resumed]
    rolled >> glue()
    resumed >> TriggerDagRunOperator(task_id="start_run", trigger_dag_id="lakehouse")


operations()
