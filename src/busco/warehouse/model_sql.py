"""The SQL by which a model becomes files, and the checks on what it wrote."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from busco.errors import BuscoError
from busco.lake import types
from busco.lake.layout import MAX_KEY_BYTES, key_bytes
from busco.lake.records import Column

if TYPE_CHECKING:
    from busco.lake.versions import WrittenFile

# Integers that no table keeps, but that a contract's exact type may take in, checked for overflow by DuckDB's cast.
_WIDE = frozenset({"HUGEINT", "UHUGEINT", "UBIGINT", "UINTEGER", "BIGNUM"})
_EXACT = frozenset({"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "DECIMAL"})
# Above this a file is ended and another begun: a size that engines over S3 like to read.
_FILE_BYTES = "256MB"
# Percent-encoded, no value but text (VARCHAR, JSON) has more bytes than this; NULL's folder has a name of its own.
_ENCODED_VALUE = 64
_NULL_FOLDER = "__HIVE_DEFAULT_PARTITION__"
_WRITTEN = re.compile(r"[\w.~%=/-]+", re.ASCII)


def columns(given: Sequence[tuple[str, str]], wanted: Sequence[Column]) -> tuple[tuple[Column, ...], tuple[str, ...]]:
    """The table's columns, in the contract's order where there is one, and the expression for each.

    Args:
        given: name and type of each column of the model's SQL; no name is there twice (`column_names.check`).
        wanted: the contract's columns; empty where no contract is enforced.

    Raises:
        BuscoError: SQL and contract differ, or types can't be kept; with all columns and the cast to write.
    """
    names = [name for name, _ in given]
    if not wanted:
        parsed = types.parse_all(given)
        kept = tuple(Column(name=name, type=str(kind)) for name, kind in parsed)
        return kept, tuple(_as_written(name, kind) for name, kind in parsed)
    kinds = dict(given)
    problems = [f"{c.name}: the contract has it, the SQL does not" for c in wanted if c.name not in kinds]
    contract = {column.name for column in wanted}
    problems += [f"{name}: the SQL has it, the contract does not" for name in names if name not in contract]
    expressions = []
    kept_columns = []
    for column in wanted:
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
            problems.append(f"{column.name}: the contract says {target}, the SQL gives {types.shown(source)}")
        kept_columns.append(column.model_copy(update={"type": str(target)}))
    if problems:
        listed = "\n".join(f"    {problem}" for problem in problems)
        raise BuscoError(f"the model's SQL does not fit its contract:\n{listed}", "mend the SQL or the YAML")
    return tuple(kept_columns), tuple(expressions)


def _as_written(column: str, kind: types.DataType) -> str:
    """The expression by which COPY writes a column of a type.

    Its Parquet writer fails on infinity in a TIMESTAMP_S, naming no column. A cast to the file's own type keeps it, so
    that it is found among what was written.
    """
    name, file_type = types.quoted(column), _in_microseconds(kind)
    return name if file_type == kind else f"cast({name} as {file_type}) as {name}"


def _in_microseconds(kind: types.DataType) -> types.DataType:
    """A type with TIMESTAMP in place of each TIMESTAMP_S in it."""
    if isinstance(kind, types.ListOf):
        return types.ListOf(_in_microseconds(kind.element))
    if isinstance(kind, types.MapOf):
        return types.MapOf(_in_microseconds(kind.key), _in_microseconds(kind.value))
    if isinstance(kind, types.Struct):
        return types.Struct(tuple((name, _in_microseconds(field)) for name, field in kind.fields))
    return types.Primitive("TIMESTAMP") if kind.name == "TIMESTAMP_S" else kind


def _castable(source: str, target: types.DataType) -> bool:
    """Whether a cast is exact or fails: from the wide integers, and between decimals of one scale (a `sum` of decimals
    is DECIMAL(38,s))."""
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


def partition_columns(said: Any, table: Sequence[Column]) -> tuple[str, ...]:
    """The model's `partition_by` as column names.

    Raises:
        BuscoError: it names no column of the table, or a nested one.
    """
    names = tuple([said] if isinstance(said, str) else said or ())
    kinds = {column.name: types.parse(column.type, column.name) for column in table}
    for name in names:
        if name not in kinds:
            raise BuscoError(f"partition_by names {name}, which is no column", "mend the model's config")
        if types.is_nested(kinds[name]) or str(kinds[name]) == "BLOB":
            raise BuscoError(f"partition_by names {name}, a {kinds[name]}", "partition by a simple column")
    return names


def copy_sql(
    expressions: Sequence[str], table: Sequence[Column], partition_by: Sequence[str], sql: str, url: str
) -> str:
    """The COPY that writes a version's files below `url` and returns their statistics.

    A newline follows the model's SQL, so that a comment at its end ends there. The statement fails where a partition's
    files would have keys that S3 refuses.
    """
    fields = types.field_ids_sql([(column.name, types.parse(column.type, column.name)) for column in table])
    options = [f"format parquet, compression zstd, return_stats, field_ids {fields}"]
    if partition_by:
        by = ", ".join(types.quoted(name) for name in partition_by)
        options.append(f"partition_by ({by}), write_partition_columns true")
    else:
        # a file is opened when its first row comes, with the credentials of then, and not when the statement begins
        options.append(f"file_size_bytes '{_FILE_BYTES}', write_empty_file false")
    query = f"select {', '.join(expressions)} from (\n{sql}\n)"
    if partition_by and (checked := _fitting_partitions(table, partition_by, url)):
        query = f"select * replace ({checked}) from ({query})"
    return f"copy ({query}) to {types.literal(url)} ({', '.join(options)})"


def _fitting_partitions(table: Sequence[Column], partition_by: Sequence[str], url: str) -> str:
    """The first partition column as an expression that fails where the row's partition has too long a path; empty where
    none can. DuckDB writes names and values of the path as `url_encode` does (a test compares them).

    The value is not in the message, for it may be a person's.
    """
    kinds = {column.name: types.parse(column.type, column.name) for column in table}
    folder = url.removeprefix("s3://").partition("/")[2]
    names = sum(len(quote(column, safe="~")) + len("/=") for column in partition_by)
    room = MAX_KEY_BYTES - key_bytes(folder) - len("/data_999999.parquet") - names
    texts = [column for column in partition_by if _is_text(kinds[column])]
    if not texts and room >= _ENCODED_VALUE * len(partition_by):
        return ""
    columns = [types.quoted(column) for column in partition_by]
    size = " + ".join(f"coalesce(length(url_encode(cast({c} as varchar))), {len(_NULL_FOLDER)})" for c in columns)
    said = (
        f"{'.'.join(folder.split('/')[:2])} has a partition by {', '.join(partition_by)} whose files would have keys "
        f"longer than the {MAX_KEY_BYTES:,} bytes that S3 takes. Shorten the values, or partition by another column; "
        f"find them by: where {size} > {room}"
    )
    return f"case when {size} > {room} then error({types.literal(said)}) else {columns[0]} end as {columns[0]}"


def _is_text(kind: types.DataType) -> bool:
    """Whether values of a type are texts of any length; JSON's are, too."""
    return isinstance(kind, types.Primitive) and types.iceberg_name(kind) == "string"


def written_files(stats: Any, prefix: str) -> list[WrittenFile]:
    """COPY's RETURN_STATS rows as files; `prefix` is the bucket's URL.

    A file without rows is left out: a version without files is a typed empty relation (Q1).
    dbt gives rows of (filename, count, file_size_bytes, footer_size_bytes, column_statistics, partition_keys),
    the maps as JSON text.
    """
    # pyiceberg is a tenth of what a start imports, and needed only where something was built
    from busco.lake.versions import WrittenFile

    files = []
    for row in stats:
        name, count, size, _, statistics, partition = tuple(row)[:6]
        files.append(
            WrittenFile(
                key=str(name).removeprefix(prefix),
                rows=int(count),
                bytes=int(size),
                statistics=_map(statistics),
                partition=_map(partition),
            )
        )
    keys = [file.key for file in files]
    if doubled := sorted({key for key in keys if keys.count(key) > 1} if len(set(keys)) < len(keys) else ()):
        # the value is not named: it may be a person's
        by = ", ".join(part.split("=")[0] for part in doubled[0].split("/")[:-1] if "=" in part)
        raise BuscoError(
            f"two partitions by {by} have one folder",
            "a value of the partition column is written as NULL's folder is; write another value for it",
        )
    return sorted((file for file in files if file.rows), key=lambda file: file.key)


def is_below(folder: str, key: str) -> bool:
    """Whether COPY may have written a file of this key for a version of this folder. Names and values of partitions are
    percent-encoded in it; DuckDB would read options behind a `?`."""
    return key.startswith(f"{folder}/") and _WRITTEN.fullmatch(key) is not None and "/../" not in key


def _map(value: Any) -> dict[str, Any]:
    if value is None or value == "":
        return {}
    return dict(json.loads(value)) if isinstance(value, str) else dict(value)


def check_not_null(table: Sequence[Column], files: Sequence[WrittenFile], nested_nulls: Mapping[str, int]) -> None:
    """Checks the contract's not_null constraints by COPY's own null counts.

    Raises:
        BuscoError: a column that must not be NULL has NULLs; with their number.
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
        raise BuscoError(f"not_null constraint failed: {'; '.join(problems)}", "mend the SQL or the constraint")


def null_sql(table: Sequence[Column], urls: Sequence[str]) -> str:
    """A query that counts NULLs of the nested columns that must have none, over the written files; '' if none is."""
    nested = [c.name for c in table if c.required and types.is_nested(types.parse(c.type, c.name))]
    if not nested or not urls:
        return ""
    counts = ", ".join(f"count(*) filter (where {types.quoted(n)} is null) as {types.quoted(n)}" for n in nested)
    files = ", ".join(types.literal(url) for url in urls)
    return f"select {counts} from read_parquet([{files}], hive_partitioning = false)"
