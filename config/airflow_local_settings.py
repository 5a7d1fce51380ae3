"""Airflow imports this module in each of its processes before it connects to its database."""

from busco.orchestration import database

database.install()
