"""What runs inside dbt: the runner, and the materialization's plugin."""
