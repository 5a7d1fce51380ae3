"""The DAG on ECS, with real containers: in Airflow's environment, on a local AWS with Docker (make test-stack)."""
