"""Builds the COPY statement that writes a model's files, and checks the files that it wrote."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from busco.errors import BuscoError
from busco.lake import types
from busco.lake.layout import MAX_KEY_BYTES, NULL_FOLDER, key_bytes
from busco.lake.records import Column, DataFile

# Integer types that tables can't hold, but that can safely be cast to the type in a contract, because DuckDB's casts
# fail on overflow.
_WIDE = frozenset({"HUGEINT", "UHUGEINT", "UBIGINT", "UINTEGER", "BIGNUM"})
_EXACT = frozenset({"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "DECIMAL"})
# COPY starts a new file when the current one exceeds this size. Files of this size suit engines that read from S3.
_FILE_BYTES = "256MB"
# Of all percent-encoded values, only text (VARCHAR, JSON) can be longer than this many bytes.
_ENCODED_VALUE = 64
_WRITTEN = re.compile(r"[\w.~%=/-]+", re.ASCII)


def columns(given: Sequence[tuple[str, str]], required: Sequence[Column]) -> tuple[tuple[Column, ...], tuple[str, ...]]:
    """Returns the table's columns, in the contract's order if there is a contract, and the expression for each.

    Args:
        given: the name and type of each column of the model's SQL; names are unique (`column_names.check`).
        required: the contract's columns; empty if no contract is enforced.

    Raises:
        BuscoError: the SQL and the contract differ, or a table can't hold one of the types; the message lists the
            columns and the casts to write.
    """
    names = [name for name, _ in given]
    if not required:
        parsed = types.parse_all(given)
        kept = tuple(Column(name=name, type=str(kind)) for name, kind in parsed)
        return kept, tuple(_as_written(name, kind) for name, kind in parsed)
    kinds = dict(given)
    problems = [f"{c.name}: in the contract but not in the SQL" for c in required if c.name not in kinds]
    contract = {column.name for column in required}
    problems += [f"{name}: in the SQL but not in the contract" for name in names if name not in contract]
    expressions = []
    kept_columns = []
    for column in required:
        if column.name not in kinds:
            continue
        target = types.parse(column.type, column.name)
        source = kinds[column.name]
        name = types.quoted(column.name)
        if _castable(source, target):
            expressions.append(f"cast({name} as {target}) as {name}")
        elif str(target) == _canonical(source):
            expressions.append(_as_written(column.name, target))
        else:
            problems.append(f"{column.name}: {target} in the contract, {types.shown(source)} in the SQL")
        kept_columns.append(column.model_copy(update={"type": str(target)}))
    if problems:
        listed = "\n".join(f"    {problem}" for problem in problems)
        raise BuscoError(f"the model's SQL does not match its contract:\n{listed}", "fix the SQL or the YAML")
    return tuple(kept_columns), tuple(expressions)


def _as_written(column: str, kind: types.DataType) -> str:
    """Returns the expression that COPY uses to write a column of type `kind`.

    DuckDB's Parquet writer fails on infinity in a TIMESTAMP_S without naming the column. A cast to the file's own type
    preserves the infinity, so that `date_range` finds it in the written files.
    """
    name, file_type = types.quoted(column), _in_microseconds(kind)
    return name if file_type == kind else f"cast({name} as {file_type}) as {name}"


def _in_microseconds(kind: types.DataType) -> types.DataType:
    """Returns a type with each TIMESTAMP_S in it replaced by TIMESTAMP."""
    if isinstance(kind, types.ListOf):
        return types.ListOf(_in_microseconds(kind.element))
    if isinstance(kind, types.MapOf):
        return types.MapOf(_in_microseconds(kind.key), _in_microseconds(kind.value))
    if isinstance(kind, types.Struct):
        return types.Struct(tuple((name, _in_microseconds(field)) for name, field in kind.fields))
    return types.Primitive("TIMESTAMP") if kind.name == "TIMESTAMP_S" else kind


def _castable(source: str, target: types.DataType) -> bool:
    """Whether a cast either is exact or fails: true for the wide integers, and for decimals with the same scale (a
    `sum` of decimals is a DECIMAL(38,s))."""
    if not isinstance(target, types.Primitive) or target.name not in _EXACT:
        return False
    if source.upper() in _WIDE:
        return True
    if target.name != "DECIMAL" or not source.upper().startswith("DECIMAL") or source.endswith("]"):
        return False
    given = types.parse(source)
    return isinstance(given, types.Primitive) and given.scale == target.scale


def _canonical(kind: str) -> str:
    try:
        return str(types.parse(kind))
    except BuscoError:
        return kind


def partition_columns(partition_by: Any, table: Sequence[Column]) -> tuple[str, ...]:
    """Returns the model's `partition_by` as column names.

    Raises:
        BuscoError: one of them is not a column of the table, or has a nested type or the type BLOB.
    """
    names = tuple([partition_by] if isinstance(partition_by, str) else partition_by or ())
    kinds = {column.name: types.parse(column.type, column.name) for column in table}
    for name in names:
        if name not in kinds:
            raise BuscoError(f"partition_by names {name}, which is not a column", "fix the model's config")
        if types.is_nested(kinds[name]) or str(kinds[name]) == "BLOB":
            raise BuscoError(
                f"partition_by names {name}, whose type is {kinds[name]}", "partition by a column of a simple type"
            )
    return names


def copy_sql(
    expressions: Sequence[str], table: Sequence[Column], partition_by: Sequence[str], sql: str, url: str
) -> str:
    """Returns the COPY statement that writes a version's files below `url` and returns their statistics.

    A newline follows the model's SQL, to terminate a comment on its last line. The statement fails if the keys of a
    partition's files would be too long for S3.
    """
    fields = types.field_ids_sql([(column.name, types.parse(column.type, column.name)) for column in table])
    options = [f"format parquet, compression zstd, return_stats, field_ids {fields}"]
    if partition_by:
        by = ", ".join(types.quoted(name) for name in partition_by)
        options.append(f"partition_by ({by}), write_partition_columns true")
    else:
        # with these options, DuckDB opens each file only when the file's first row arrives, so it uses the credentials
        # that are current at that time
        options.append(f"file_size_bytes '{_FILE_BYTES}', write_empty_file false")
    query = f"select {', '.join(expressions)} from (\n{sql}\n)"
    if partition_by and (checked := _fitting_partitions(table, partition_by, url)):
        query = f"select * replace ({checked}) from ({query})"
    return f"copy ({query}) to {types.literal(url)} ({', '.join(options)})"


def _fitting_partitions(table: Sequence[Column], partition_by: Sequence[str], url: str) -> str:
    """Returns an expression that replaces the first partition column and fails if the path of the row's partition is
    too long; '' if no path can be too long. DuckDB encodes the path's names and values as `url_encode` does (a test
    compares the two).

    The message does not contain the value, which may be personal data.
    """
    kinds = {column.name: types.parse(column.type, column.name) for column in table}
    folder = url.removeprefix("s3://").partition("/")[2]
    names = sum(len(quote(column, safe="~")) + len("/=") for column in partition_by)
    room = MAX_KEY_BYTES - key_bytes(folder) - len("/data_999999.parquet") - names
    texts = [column for column in partition_by if _is_text(kinds[column])]
    if not texts and room >= _ENCODED_VALUE * len(partition_by):
        return ""
    columns = [types.quoted(column) for column in partition_by]
    size = " + ".join(f"coalesce(length(url_encode(cast({c} as varchar))), {len(NULL_FOLDER)})" for c in columns)
    message = (
        f"{'.'.join(folder.split('/')[:2])} is partitioned by {', '.join(partition_by)}, and the files of at least one "
        f"partition would have keys longer than S3's limit of {MAX_KEY_BYTES:,} bytes. Shorten the values, or "
        f"partition by another column; to find these values, use: where {size} > {room}"
    )
    return f"case when {size} > {room} then error({types.literal(message)}) else {columns[0]} end as {columns[0]}"


def _is_text(kind: types.DataType) -> bool:
    """Whether a type's values are text of any length (VARCHAR or JSON)."""
    return isinstance(kind, types.Primitive) and types.iceberg_name(kind) == "string"


def written_files(stats: Any, prefix: str) -> list[DataFile]:
    """Returns COPY's RETURN_STATS rows as files; `prefix` is the bucket's URL.

    Files without rows are left out; if no files remain, the version is a typed empty relation (Q1).
    dbt returns each row as (filename, count, file_size_bytes, footer_size_bytes, column_statistics, partition_keys),
    with maps as JSON text.

    Raises:
        BuscoError: two partitions have the same folder.
    """
    files = []
    for row in stats:
        name, count, size, _, statistics, partition = tuple(row)[:6]
        files.append(
            DataFile(
                key=str(name).removeprefix(prefix),
                rows=int(count),
                bytes=int(size),
                statistics=_map(statistics),
                partition=_map(partition),
            )
        )
    keys = [file.key for file in files]
    if doubled := sorted({key for key in keys if keys.count(key) > 1} if len(set(keys)) < len(keys) else ()):
        # the message leaves out the value, which may be personal data
        by = ", ".join(part.split("=")[0] for part in doubled[0].split("/")[:-1] if "=" in part)
        raise BuscoError(
            f"two values of {by} map to the same partition folder",
            "a value of the partition column equals the name of the folder for NULL; replace that value",
        )
    return sorted((file for file in files if file.rows), key=lambda file: file.key)


def is_below(folder: str, key: str) -> bool:
    """Whether `key` is a valid key for a file that COPY writes for the version in `folder`. Partition names and values
    in the key are percent-encoded; a `?` is not allowed, because DuckDB would parse what follows it as options."""
    return key.startswith(f"{folder}/") and _WRITTEN.fullmatch(key) is not None and "/../" not in key


def _map(value: Any) -> dict[str, Any]:
    if value is None or value == "":
        return {}
    found = json.loads(value) if isinstance(value, str) else value
    return {name: one for name, one in found.items() if one is not None}


def check_not_null(table: Sequence[Column], files: Sequence[DataFile], nested_nulls: Mapping[str, int]) -> None:
    """Checks the contract's not_null constraints against COPY's own null counts.

    Raises:
        BuscoError: a column that must not be NULL has NULLs; the message says how many.
    """
    problems = []
    for column in table:
        if not column.required:
            continue
        if types.is_nested(types.parse(column.type, column.name)):
            nulls = int(nested_nulls.get(column.name, 0))
        else:
            path = types.quoted(column.name)
            nulls = sum(int(file.statistics.get(path, {}).get("null_count", file.rows)) for file in files)
        if nulls:
            problems.append(f"{column.name} is NULL in {nulls} row{'s' if nulls != 1 else ''}")
    if problems:
        raise BuscoError(f"not_null constraint failed: {'; '.join(problems)}", "fix the SQL or the constraint")


def null_sql(table: Sequence[Column], urls: Sequence[str]) -> str:
    """Returns a query that counts the NULLs of nested not_null columns in the written files; '' if there is no such
    column or no file."""
    nested = [c.name for c in table if c.required and types.is_nested(types.parse(c.type, c.name))]
    if not nested or not urls:
        return ""
    counts = ", ".join(f"count(*) filter (where {types.quoted(n)} is null) as {types.quoted(n)}" for n in nested)
    files = ", ".join(types.literal(url) for url in urls)
    return f"select {counts} from read_parquet([{files}], hive_partitioning = false)"
