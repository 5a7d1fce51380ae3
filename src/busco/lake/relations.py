"""Builds the SQL that reads a version in DuckDB: exactly its files, with its schema (Q1).

Building the SQL neither lists nor opens any files.
"""

from __future__ import annotations

from collections.abc import Sequence

from busco.lake import types
from busco.lake.records import Column, Version


def select_sql(version: Version, bucket: str) -> str:
    """Returns a query for a version's rows.

    Columns are matched by field id if none of them is nested. DuckDB's `schema` option does not support ids for nested
    fields, so if there are any, all columns are matched by name. The result is the same, because all files of a version
    have exactly the version's schema (R5).
    """
    if not version.files:
        return empty_sql(version.columns)
    files = ", ".join(types.literal(f"s3://{bucket}/{file.key}") for file in version.files)
    kinds = [(column, types.parse(column.type, column.name)) for column in version.columns]
    names = ", ".join(types.quoted(column.name) for column in version.columns)
    if any(types.is_nested(kind) for _, kind in kinds):
        return f"select {names} from read_parquet([{files}], hive_partitioning = false)"
    schema = ", ".join(
        f"{types.field_id((column.name,), kind)}: "
        f"{{name: {types.literal(column.name)}, type: {types.literal(str(kind))}, default_value: null}}"
        for column, kind in kinds
    )
    return f"select {names} from read_parquet([{files}], hive_partitioning = false, schema = map {{{schema}}})"


def empty_sql(columns: Sequence[Column]) -> str:
    """Returns a query with these typed columns and no rows."""
    typed = ", ".join(f"cast(null as {column.type}) as {types.quoted(column.name)}" for column in columns)
    return f"select {typed} where false"
