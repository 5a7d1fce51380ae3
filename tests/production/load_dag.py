"""A DAG for tests: more tasks than a worker can run at once, and a long one."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from airflow.models.dag import DAG
from airflow.operators.python import PythonOperator

SHORT = 50


def wait(seconds: int) -> None:
    """Airflow inspects the signature of a callable, and `time.sleep` has none."""
    time.sleep(seconds)


with DAG(
    "load",
    schedule=None,
    start_date=datetime(2024, 1, 1, tzinfo=UTC),
    max_active_tasks=SHORT + 1,
    default_args={"retries": 0},
) as dag:
    PythonOperator(task_id="long", python_callable=wait, op_args=[60], priority_weight=2)
    for number in range(SHORT):
        PythonOperator(task_id=f"short_{number}", python_callable=wait, op_args=[4])
