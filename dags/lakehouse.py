"""Builds tested tables from raw files and publishes them as one release: pin, the dbt graph, docs, publish, Glue.

For another dbt project on the same lake, copy this file and pass the project's folder (docs/modelling.md).
"""

from airflow.models.dag import DAG

from busco.orchestration.dag import lakehouse_dag

lakehouse: DAG = lakehouse_dag(
    "lakehouse",
    description="Builds silver and gold from bronze, tests them, and publishes them together",
    doc_md=__doc__,
)
