"""Writes small Iceberg tables for tests with DuckDB's COPY and pyiceberg, without using the product's own writer."""

from __future__ import annotations

import io
import tempfile
import uuid
from pathlib import Path
from typing import Any

import duckdb
from pyiceberg.manifest import (
    DataFile,
    DataFileContent,
    FileFormat,
    ManifestEntry,
    ManifestEntryStatus,
    write_manifest,
    write_manifest_list,
)
from pyiceberg.partitioning import UNPARTITIONED_PARTITION_SPEC
from pyiceberg.schema import Schema
from pyiceberg.serializers import ToOutputFile
from pyiceberg.table.metadata import TableMetadataV2
from pyiceberg.table.refs import SnapshotRefType
from pyiceberg.table.snapshots import Operation, Snapshot, Summary
from pyiceberg.table.sorting import UNSORTED_SORT_ORDER
from pyiceberg.typedef import Record
from pyiceberg.types import (
    BooleanType,
    DateType,
    DecimalType,
    DoubleType,
    IcebergType,
    IntegerType,
    LongType,
    NestedField,
    StringType,
    TimestampType,
    TimestamptzType,
)

TYPES: dict[str, tuple[IcebergType, str]] = {
    "BOOLEAN": (BooleanType(), "boolean"),
    "INTEGER": (IntegerType(), "int"),
    "BIGINT": (LongType(), "bigint"),
    "DOUBLE": (DoubleType(), "double"),
    "VARCHAR": (StringType(), "string"),
    "DATE": (DateType(), "date"),
    "TIMESTAMP": (TimestampType(), "timestamp"),
    "TIMESTAMP WITH TIME ZONE": (TimestamptzType(), "timestamp"),
    "DECIMAL(18,2)": (DecimalType(18, 2), "decimal(18,2)"),
}


class _Output:
    """A file that pyiceberg writes: it is buffered in memory and stored as one object when it is closed."""

    def __init__(self, s3: Any, url: str) -> None:
        self.s3, self.location = s3, url

    def create(self, overwrite: bool = False) -> Any:
        output = self

        class Stream(io.BytesIO):
            def close(self) -> None:
                if not self.closed:
                    put(output.s3, output.location, self.getvalue())
                super().close()

        return Stream()

    def to_input_file(self) -> Any:
        return self

    def __len__(self) -> int:
        bucket, key = _split(self.location)
        return int(self.s3.head_object(Bucket=bucket, Key=key)["ContentLength"])


def put(s3: Any, url: str, body: bytes) -> None:
    bucket, key = _split(url)
    s3.put_object(Bucket=bucket, Key=key, Body=body)


def _split(url: str) -> tuple[str, str]:
    bucket, _, key = url.removeprefix("s3://").partition("/")
    return bucket, key


def write_table(s3: Any, bucket: str, name: str, select: str, files: int = 1) -> tuple[str, list[dict[str, str]]]:
    """Writes the rows of a DuckDB query as a version of a table, with its data files outside the table's location.

    Args:
        name: `<layer>/<table>`.
        select: the query; its column types must be among TYPES.
        files: the number of data files, each of which contains all rows; 0 makes a table without files.

    Returns:
        The location of the metadata file, and the columns in Glue's format.
    """
    version = uuid.uuid4().hex
    location = f"s3://{bucket}/_lake/test/{name}"
    with duckdb.connect(":memory:") as connection, tempfile.TemporaryDirectory() as scratch:
        connection.execute("SET timezone = 'UTC'")
        described = connection.execute(f"DESCRIBE {select}").fetchall()
        columns = [(str(row[0]), str(row[1])) for row in described]
        ids = ", ".join(f'"{column}": {number}' for number, (column, _) in enumerate(columns, 1))
        data_files = []
        for number in range(files):
            path = Path(scratch) / f"{number}.parquet"
            connection.execute(f"COPY ({select}) TO '{path}' (FORMAT parquet, FIELD_IDS {{{ids}}})")
            count = connection.execute(f"SELECT count(*) FROM read_parquet('{path}')").fetchall()[0][0]
            url = f"s3://{bucket}/{name}/{version}/{number}.parquet"
            put(s3, url, path.read_bytes())
            data_files.append((url, int(count), path.stat().st_size))
    schema = Schema(*(NestedField(i, column, TYPES[kind][0]) for i, (column, kind) in enumerate(columns, 1)))
    metadata = f"{location}/metadata/00001-{version}.metadata.json"
    _write_metadata(s3, location, metadata, schema, data_files)
    return metadata, [
        {"Name": column, "Type": TYPES[kind][1], "Comment": f"about {column}"} for column, kind in columns
    ]


def _write_metadata(
    s3: Any, location: str, metadata: str, schema: Schema, data_files: list[tuple[str, int, int]]
) -> None:
    unique, snapshot, spec = uuid.uuid4().hex, uuid.uuid4().int >> 66, UNPARTITIONED_PARTITION_SPEC
    manifests = []
    if data_files:
        output: Any = _Output(s3, f"{location}/metadata/{unique}-m0.avro")
        with write_manifest(2, spec, schema, output, snapshot, "deflate") as writer:
            for url, rows, size in data_files:
                file = DataFile.from_args(
                    content=DataFileContent.DATA, file_path=url, file_format=FileFormat.PARQUET, partition=Record(),
                    record_count=rows, file_size_in_bytes=size, column_sizes={}, value_counts={}, null_value_counts={},
                    nan_value_counts={}, lower_bounds={}, upper_bounds={}, key_metadata=None, split_offsets=None,
                    equality_ids=None, sort_order_id=None,
                )  # fmt: skip
                file.spec_id = spec.spec_id
                entry = ManifestEntry.from_args(
                    status=ManifestEntryStatus.ADDED, snapshot_id=snapshot, sequence_number=1, file_sequence_number=1,
                    data_file=file,
                )  # fmt: skip
                writer.add(entry)
        manifests.append(writer.to_manifest_file())
    manifest_list: Any = _Output(s3, f"{location}/metadata/snap-{snapshot}-{unique}.avro")
    with write_manifest_list(2, manifest_list, snapshot, None, 1, "deflate") as list_writer:
        list_writer.add_manifests(manifests)
    now = 1_514_800_800_000
    snapshot_fields: dict[str, Any] = {
        "snapshot-id": snapshot, "sequence-number": 1, "timestamp-ms": now, "schema-id": schema.schema_id,
        "manifest-list": manifest_list.location,
        "summary": Summary(Operation.APPEND, **{"total-records": str(sum(rows for _, rows, _ in data_files))}),
    }  # fmt: skip
    fields: dict[str, Any] = {
        "format-version": 2, "table-uuid": uuid.uuid4(), "location": location, "last-sequence-number": 1,
        "last-updated-ms": now, "last-column-id": schema.highest_field_id, "schemas": [schema],
        "current-schema-id": schema.schema_id, "partition-specs": [spec], "default-spec-id": spec.spec_id,
        "last-partition-id": 999, "properties": {"gc.enabled": "false"}, "current-snapshot-id": snapshot,
        "snapshots": [Snapshot(**snapshot_fields)], "sort-orders": [UNSORTED_SORT_ORDER],
        "default-sort-order-id": UNSORTED_SORT_ORDER.order_id,
        "refs": {"main": {"snapshot-id": snapshot, "type": SnapshotRefType.BRANCH}},
    }  # fmt: skip
    table_file: Any = _Output(s3, metadata)
    ToOutputFile.table_metadata(TableMetadataV2(**fields), table_file, overwrite=False)


def show(glue: Any, database: str, table: str, metadata: str, columns: list[dict[str, str]]) -> None:
    """Creates a Glue table for a metadata file, or switches an existing table to it."""
    request = {"DatabaseName": database, "TableInput": table_input(table, metadata, columns)}
    try:
        glue.create_table(**request)
    except glue.exceptions.AlreadyExistsException:
        current = glue.get_table(DatabaseName=database, Name=table)["Table"]["VersionId"]
        glue.update_table(**request, VersionId=current, SkipArchive=True)


def table_input(table: str, metadata: str, columns: list[dict[str, str]]) -> dict[str, Any]:
    return {
        "Name": table,
        "TableType": "EXTERNAL_TABLE",
        "Description": f"The table {table}.",
        "Parameters": {"table_type": "ICEBERG", "metadata_location": metadata, "busco.release": "r1"},
        "StorageDescriptor": {"Location": metadata.partition("/metadata/")[0], "Columns": columns},
    }
