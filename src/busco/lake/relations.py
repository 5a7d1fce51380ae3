"""Builds the SQL that reads a version in DuckDB: exactly its files, with its columns and types (Q1).

Building the SQL neither lists nor opens any files. DuckDB opens files when it creates a view of the SQL, and again when
it plans a query on that view. The two functions here differ in how many files it opens when it creates the view, and in
what its optimizer learns from them (docs/decisions/033-relations-with-statistics.md).
"""

from __future__ import annotations

from collections.abc import Sequence

from busco.lake import types
from busco.lake.records import Column, Version


def select_sql(version: Version, bucket: str) -> str:
    """Returns a query for a version's rows, to be used for relations that will be read.

    DuckDB opens the first file when it creates a view of the query. Its estimates are at least as good as for the files
    alone: the number of rows is the record's, and if there is only one file, the minima and maxima are those in its
    footer.

    Columns are matched by name, which gives the same result as matching by field id, because all files of a version
    have exactly its schema (R5). A file without one of the columns is an error. The casts have no effect on files with
    the version's types, except for types that Parquet does not have: COPY writes TIMESTAMP_S as TIMESTAMP.
    """
    columns = (
        f"cast({types.quoted(column.name)} as {_type(column)}) as {types.quoted(column.name)}"
        for column in version.columns
    )
    return _query(version, bucket, ", ".join(columns))


def deferred_sql(version: Version, bucket: str) -> str:
    """Returns a query for the same rows as `select_sql`, to be used for relations that will probably not be read.

    DuckDB opens no file when it creates a view of the query, since `schema` specifies the columns. But its optimizer
    then knows only the number of rows, and no minima or maxima. A file without one of the columns is read as if the
    column were NULL.
    """
    schema = ", ".join(
        f"{types.literal(column.name)}: "
        f"{{name: {types.literal(column.name)}, type: {types.literal(_type(column))}, default_value: null}}"
        for column in version.columns
    )
    names = ", ".join(types.quoted(column.name) for column in version.columns)
    return _query(version, bucket, names, f", schema = map {{{schema}}}")


def view_queries(version: Version, bucket: str, is_read: bool) -> tuple[str, ...]:
    """Returns the queries from which `engine.create_view` can create a view of a version.

    If the first file of a version that will be read can't be opened, the view uses `deferred_sql`. The error then
    occurs when the view is read, and does not affect queries that read other relations.
    """
    deferred = deferred_sql(version, bucket)
    return (select_sql(version, bucket), deferred) if is_read else (deferred,)


def _query(version: Version, bucket: str, columns: str, option: str = "") -> str:
    if not version.files:
        return empty_sql(version.columns)
    files = ", ".join(types.literal(f"s3://{bucket}/{file.key}") for file in version.files)
    # Without the number of rows, DuckDB assumes that all files are as large as the first one.
    options = f"hive_partitioning = false, explicit_cardinality = {version.rows}{option}"
    return f"select {columns} from read_parquet([{files}], {options})"


def _type(column: Column) -> str:
    return str(types.parse(column.type, column.name))


def empty_sql(columns: Sequence[Column]) -> str:
    """Returns a query with these typed columns and no rows."""
    typed = ", ".join(f"cast(null as {column.type}) as {types.quoted(column.name)}" for column in columns)
    return f"select {typed} where false"
