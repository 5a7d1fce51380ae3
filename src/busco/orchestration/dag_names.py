"""The names that connect a dbt project's DAG with other components: its tag, and the datasets that start its runs."""

from __future__ import annotations

from urllib.parse import quote

from airflow.datasets import Dataset

# the beginning of the tag of each DAG that builds a dbt project
PROJECT_TAG = "project:"


def bronze_dataset(table: str) -> Dataset:
    """Returns the Airflow dataset of a bronze table, whose events state which deliveries are new."""
    # Airflow accepts only ASCII
    return Dataset(f"busco://lake/{quote(table.replace('.', '/', 1))}")


def project_tag(project: str) -> str:
    """Returns the tag of the DAGs that build a dbt project, by which the events service finds them."""
    return f"{PROJECT_TAG}{project}"
