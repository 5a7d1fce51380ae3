"""The embedded platform: a local AWS, Airflow with PostgreSQL, and sample data, on one machine without Docker."""
