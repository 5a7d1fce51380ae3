"""Exposes the live release to consumers: Glue tables, the docs page, and queries in Athena."""
