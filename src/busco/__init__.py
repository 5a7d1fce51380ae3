"""The Busco data platform: a lakehouse of dbt models on DuckDB, S3 and Iceberg."""

__version__ = "0.1.0"
