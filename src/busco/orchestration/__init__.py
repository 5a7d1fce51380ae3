"""The code that runs inside Airflow: the dbt graph as tasks, the triggers that follow runners, and the other tasks."""
