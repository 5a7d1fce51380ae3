"""Raw files → tested tables → one release: pin, the dbt graph, docs, publish, Glue."""

from datetime import timedelta

import pendulum
from airflow.decorators import dag, task
from airflow.models.param import Param

from busco.orchestration.tasks import dbt_tasks, docs_task
from busco.settings import get_settings

RETRY = {"retries": 3, "retry_delay": timedelta(seconds=5), "retry_exponential_backoff": True}


@dag(
    dag_id="lakehouse",
    description="Builds silver and gold from bronze, tests them, and publishes them together",
    schedule=None,
    start_date=pendulum.datetime(2024, 1, 1, tz="UTC"),
    catchup=False,
    max_active_runs=1,
    default_args={"owner": "data-platform", "execution_timeout": timedelta(minutes=30)},
    tags=["dbt", "lake"],
    params={
        "select": Param("", type=["null", "string"], description="dbt's selection syntax; empty builds everything"),
        "full_refresh": Param(False, type="boolean", description="build models even where nothing changed"),
    },
    doc_md=__doc__ + "\n\nRed? Open the red task's log: it begins with the error and what to do. Mend it, clear that "
    "task with *Downstream*: what is done already is not built again. The old release stays live meanwhile.",
)
def lakehouse():
    @task(**RETRY)
    def pin(params=None, ti=None):
        from busco.orchestration import control

        return control.pin(
            ti.dag_id, ti.run_id, ti.try_number, str(ti.dag_run.id), params["select"] or "", params["full_refresh"]
        )

    @task(trigger_rule="none_failed", **RETRY)
    def publish(ti=None, **context):
        from busco.orchestration import control

        return control.publish(ti.dag_id, ti.run_id, control.who_is(context))

    @task(trigger_rule="none_failed", **RETRY)
    def glue():
        from busco.orchestration import control

        control.show()

    pin() >> dbt_tasks(get_settings(), "models") >> docs_task() >> publish() >> glue()


lakehouse()
