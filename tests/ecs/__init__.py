"""Tests of the DAG on ECS with real containers: in Airflow's environment, a local AWS with Docker (make test-stack)."""
