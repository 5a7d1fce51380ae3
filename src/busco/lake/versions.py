"""Writes a version's Iceberg metadata from what COPY reports, without a catalog or any access to the data files.

Some of the pyiceberg APIs used here are not guaranteed to be stable, hence the pin `~=0.12.0` and a contract test that
reads the result with three independent implementations (docs/iceberg.md, "Writing a version").
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

from pyiceberg.conversions import to_bytes
from pyiceberg.manifest import (
    DataFile as IcebergDataFile,
)
from pyiceberg.manifest import (
    DataFileContent,
    FileFormat,
    ManifestEntry,
    ManifestEntryStatus,
    ManifestFile,
    read_manifest_list,
    write_manifest,
    write_manifest_list,
)
from pyiceberg.partitioning import PartitionField, PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.table.metadata import TableMetadataV2
from pyiceberg.table.refs import SnapshotRefType
from pyiceberg.table.snapshots import Operation, Snapshot, SnapshotLogEntry, Summary
from pyiceberg.table.sorting import UNSORTED_SORT_ORDER
from pyiceberg.transforms import IdentityTransform
from pyiceberg.typedef import Record
from pyiceberg.types import (
    BinaryType,
    BooleanType,
    DateType,
    DecimalType,
    DoubleType,
    FloatType,
    IcebergType,
    IntegerType,
    ListType,
    LongType,
    MapType,
    NestedField,
    PrimitiveType,
    StringType,
    StructType,
    TimestampType,
    TimestamptzType,
)

from busco.lake import types
from busco.lake.iceberg_io import ObjectOutput, Objects
from busco.lake.layout import EnvironmentLayout
from busco.lake.metadata_json import Descriptions, edited, location_of, snapshot_number, table_uuid, write
from busco.lake.objects import ObjectStore
from busco.lake.records import Column, DataFile, Version

_SEQUENCE = 1
_PARTITION_FIELD_ID = 1000  # Iceberg specification: partition field ids start at 1000
_EPOCH_DATE = date(1970, 1, 1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_ICEBERG: dict[str, PrimitiveType] = {
    "boolean": BooleanType(),
    "int": IntegerType(),
    "long": LongType(),
    "float": FloatType(),
    "double": DoubleType(),
    "string": StringType(),
    "binary": BinaryType(),
    "date": DateType(),
    "timestamp": TimestampType(),
    "timestamptz": TimestamptzType(),
}


@dataclass(frozen=True)
class ManifestFiles:
    """The data files of one manifest. `name` determines the manifest's content, so it is written only once.

    `read` returns the files, with their statistics and partition values; it is called only if the manifest must be
    written.
    """

    name: str
    read: Callable[[], Sequence[DataFile]]


def write_metadata(
    store: ObjectStore,
    layout: EnvironmentLayout,
    version: Version,
    manifests: Sequence[ManifestFiles],
    descriptions: Descriptions,
    properties: Mapping[str, str],
    reused: str = "",
) -> None:
    """Writes a version's manifests, its manifest list and, last of all, `metadata.json` under `version.metadata` (R5).

    An existing metadata.json is not replaced: its name contains the version's id, so its content is equivalent. The
    manifests are stored outside of the version's location, because several metadata files can share them.

    Args:
        layout: the keys of the environment that the metadata belongs to.
        version: a version with its columns, personal columns, and the key of its metadata.
        properties: additional table properties.
        reused: the key of another version's metadata. Manifests that it names are not written again.

    Raises:
        BuscoError: readers could not tell two fields apart (`types.check_fields`).
    """
    schema = iceberg_schema(version.columns)
    spec = _partition_spec(schema, version.partition_by)
    location = location_of(version.metadata)
    snapshot_id = snapshot_number(version.version)
    manifest_list = store.url(f"{location}/metadata/snap-{snapshot_id}.avro")
    write_list(store, manifest_list, version, write_manifests(store, layout, version, manifests, reused))
    now_ms = int((_made_at(store, layout, version) - _EPOCH).total_seconds() * 1000)
    # pyiceberg's models are populated by alias, which the type checker can't follow.
    snapshot_fields: dict[str, Any] = {
        "snapshot-id": snapshot_id,
        "sequence-number": _SEQUENCE,
        "timestamp-ms": now_ms,
        "manifest-list": manifest_list,
        "schema-id": schema.schema_id,
        "summary": Summary(
            Operation.APPEND,
            **{
                "added-data-files": str(len(version.files)),
                "added-records": str(version.rows),
                "total-records": str(version.rows),
                "total-data-files": str(len(version.files)),
                "total-files-size": str(version.bytes),
                "total-delete-files": "0",
                "total-position-deletes": "0",
                "total-equality-deletes": "0",
            },
        ),
    }
    fields: dict[str, Any] = {
        "format-version": 2,
        "table-uuid": table_uuid(layout, version.table),
        "location": store.url(location),
        "last-sequence-number": _SEQUENCE,
        "last-updated-ms": now_ms,
        "last-column-id": schema.highest_field_id,
        "schemas": [schema],
        "current-schema-id": schema.schema_id,
        "partition-specs": [spec],
        "default-spec-id": spec.spec_id,
        "last-partition-id": _PARTITION_FIELD_ID + max(len(version.partition_by), 1) - 1,
        "properties": {"gc.enabled": "false", **_metrics(hidden_columns(version)), **properties},
        "current-snapshot-id": snapshot_id,
        "snapshots": [Snapshot(**snapshot_fields)],
        "snapshot-log": [SnapshotLogEntry(**{"snapshot-id": snapshot_id, "timestamp-ms": now_ms})],
        "metadata-log": [],
        "sort-orders": [UNSORTED_SORT_ORDER],
        "default-sort-order-id": UNSORTED_SORT_ORDER.order_id,
        "refs": {"main": {"snapshot-id": snapshot_id, "type": SnapshotRefType.BRANCH}},
    }
    metadata = json.loads(TableMetadataV2(**fields).model_dump_json())
    write(store, version.metadata, edited(metadata, store.url(location), descriptions))


def write_manifests(
    store: ObjectStore,
    layout: EnvironmentLayout,
    version: Version,
    manifests: Sequence[ManifestFiles],
    reused: str = "",
) -> list[ManifestFile]:
    """Writes a version's missing manifests, and returns all of its manifests that have files (`write_metadata`)."""
    schema = iceberg_schema(version.columns)
    spec = _partition_spec(schema, version.partition_by)
    known = _manifests(store, reused) if reused else {}
    found = []
    for manifest in manifests:
        key = layout.manifest(version.table, manifest.name)
        found.append(known.get(store.url(key)) or _write_manifest(store, key, manifest, schema, spec))
    return [manifest for manifest in found if manifest is not None]


def write_list(store: ObjectStore, url: str, version: Version, manifests: Sequence[ManifestFile]) -> None:
    """Writes a version's manifest list, unless it exists."""
    output, snapshot_id = ObjectOutput(store, url, keep=True), snapshot_number(version.version)
    with write_manifest_list(2, output, snapshot_id, None, _SEQUENCE, "deflate") as writer:
        writer.add_manifests(list(manifests))


def _made_at(store: ObjectStore, layout: EnvironmentLayout, version: Version) -> datetime:
    """Returns the time a version was made. Bronze records don't contain it, so for bronze versions this is the time the
    record was stored.

    So the metadata has the same content whenever it is created again, unless it was made from a record in format 1.
    """
    record = layout.version(version.table, version.version)
    return version.made_at or store.modified(record).get(record) or datetime.now(UTC)


def hidden_columns(version: Version) -> tuple[str, ...]:
    """Returns the columns whose values must not be kept in metadata: they get counts but no bounds.

    If a record has no list of personal columns, it is older than that list, so any of its columns may be personal.
    """
    return tuple(column.name for column in version.columns) if version.personal is None else version.personal


def _manifests(store: ObjectStore, metadata: str) -> dict[str, ManifestFile]:
    """Returns the manifests that a metadata file names, by URL; none if the metadata does not exist."""
    stored = store.get(metadata)
    if stored is None:
        return {}
    (snapshot,) = json.loads(stored.body)["snapshots"]
    listed = read_manifest_list(Objects(store).new_input(snapshot["manifest-list"]))
    return {manifest.manifest_path: manifest for manifest in listed}


def _write_manifest(
    store: ObjectStore, key: str, manifest: ManifestFiles, schema: Schema, spec: PartitionSpec
) -> ManifestFile | None:
    """Writes a manifest unless it exists, and returns it; returns None if it would have no files."""
    files = manifest.read()
    if not files:
        return None
    # The snapshot that added the files. It need not exist, because engines remove old snapshots.
    snapshot_id = snapshot_number(key)
    with write_manifest(
        2, spec, schema, ObjectOutput(store, store.url(key), keep=True), snapshot_id, "deflate"
    ) as writer:
        for file in files:
            writer.add(_entry(store, file, schema, spec, snapshot_id))
    result = writer.to_manifest_file()
    result.sequence_number = result.min_sequence_number = _SEQUENCE
    return result


def _metrics(personal: Collection[str]) -> dict[str, str]:
    """Returns the table properties that declare which columns have no bounds (Iceberg, "Write properties")."""
    return {f"write.metadata.metrics.column.{name}": "counts" for name in sorted(personal)}


def iceberg_schema(columns: Sequence[Column]) -> Schema:
    """Returns the Iceberg schema of columns. All ids in it are hashes, so they are stable across versions.

    Raises:
        BuscoError: readers could not tell two fields apart (`types.check_fields`).
    """
    types.check_fields([(column.name, types.parse(column.type, column.name)) for column in columns])
    fields = []
    for column in columns:
        kind = types.parse(column.type, column.name)
        fields.append(_field((column.name,), column.name, kind, column.required))
    described = "\n".join(f"{c.name}\t{c.type}\t{c.required}" for c in columns)
    digest = hashlib.sha256(described.encode()).digest()
    return Schema(*fields, schema_id=int.from_bytes(digest[:4], "big") >> 1)


def _field(path: tuple[str, ...], name: str, kind: types.DataType, required: bool) -> NestedField:
    return NestedField(types.field_id(path, kind), name, _iceberg_type(path, kind), required=required)


def _iceberg_type(path: tuple[str, ...], kind: types.DataType) -> IcebergType:
    if isinstance(kind, types.ListOf):
        inner = (*path, "element")
        return ListType(
            element_id=types.field_id(inner, kind.element),
            element=_iceberg_type(inner, kind.element),
            element_required=False,
        )
    if isinstance(kind, types.MapOf):
        key, value = (*path, "key"), (*path, "value")
        return MapType(
            key_id=types.field_id(key, kind.key),
            key_type=_iceberg_type(key, kind.key),
            value_id=types.field_id(value, kind.value),
            value_type=_iceberg_type(value, kind.value),
            value_required=False,
        )
    if isinstance(kind, types.Struct):
        return StructType(*(_field((*path, name), name, inner, False) for name, inner in kind.fields))
    if kind.name == "DECIMAL":
        return DecimalType(kind.precision, kind.scale)
    return _ICEBERG[types.iceberg_name(kind)]


def _partition_spec(schema: Schema, partition_by: Sequence[str]) -> PartitionSpec:
    return PartitionSpec(
        *(
            PartitionField(
                source_id=schema.find_field(name).field_id,
                field_id=_PARTITION_FIELD_ID + position,
                transform=IdentityTransform(),
                # Avro names can't contain other characters; the column is identified by its id.
                name=name if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) else f"partition_{position}",
            )
            for position, name in enumerate(partition_by)
        ),
        spec_id=0,
    )


def _entry(store: ObjectStore, file: DataFile, schema: Schema, spec: PartitionSpec, snapshot_id: int) -> ManifestEntry:
    partition = []
    for field in spec.fields:
        column = schema.find_field(field.source_id)
        text = file.partition.get(column.name)
        known = file.statistics.get(types.quoted(column.name), {})
        absent = "min" not in known and known.get("null_count", "0") != "0"
        partition.append(None if absent or text is None else _value(text, column.field_type))
    sizes: dict[int, int] = {}
    counts: dict[int, int] = {}
    nulls: dict[int, int] = {}
    nans: dict[int, int] = {}
    lower: dict[int, bytes] = {}
    upper: dict[int, bytes] = {}
    for path, known in file.statistics.items():
        field_found = _find(schema, path)
        if field_found is None:
            continue
        number = field_found.field_id
        sizes[number] = int(known.get("column_size_bytes", 0))
        counts[number] = int(known.get("num_values", 0))
        nulls[number] = int(known.get("null_count", 0))
        # COPY reports only whether there are NaNs, not how many.
        if known.get("has_nan") == "false":
            nans[number] = 0
        for kept, name in ((lower, "min"), (upper, "max")):
            bound = _bound(known, name, field_found.field_type)
            if bound is not None:
                kept[number] = bound
    data_file = IcebergDataFile.from_args(
        content=DataFileContent.DATA,
        file_path=store.url(file.key),
        file_format=FileFormat.PARQUET,
        partition=Record(*partition),
        record_count=file.rows,
        file_size_in_bytes=file.bytes,
        column_sizes=sizes,
        value_counts=counts,
        null_value_counts=nulls,
        nan_value_counts=nans,
        lower_bounds=lower,
        upper_bounds=upper,
        key_metadata=None,
        split_offsets=None,
        equality_ids=None,
        sort_order_id=None,
    )
    data_file.spec_id = spec.spec_id
    return ManifestEntry.from_args(
        status=ManifestEntryStatus.ADDED,
        snapshot_id=snapshot_id,
        sequence_number=_SEQUENCE,
        file_sequence_number=_SEQUENCE,
        data_file=data_file,
    )


def _find(schema: Schema, path: str) -> NestedField | None:
    """Returns the field at a quoted path, ignoring the additional group that some writers put into lists and maps."""
    names = [part.replace('""', '"') for part in re.findall(r'"((?:[^"]|"")*)"', path)]
    for candidate in (names, [name for name in names if name not in ("key_value", "list")]):
        with contextlib.suppress(ValueError):
            return schema.find_field(".".join(candidate))
    return None


def _bound(known: Mapping[str, str], name: str, kind: IcebergType) -> bytes | None:
    """Returns a bound in Iceberg's single-value serialization, or None if the text does not determine it reliably.

    Bounds of binary columns are escaped, and a NaN makes the bounds of a float column meaningless. Such bounds are left
    out, which only reduces pruning.
    """
    text = known.get(name)
    if text is None or isinstance(kind, BinaryType) or known.get("has_nan") == "true":
        return None
    try:
        value = _value(text, kind)
        return to_bytes(kind, value) if isinstance(kind, PrimitiveType) else None
    except (ValueError, ArithmeticError, OverflowError):
        return None


def _value(text: str, kind: IcebergType) -> Any:
    """Converts a statistic's text to the value that Iceberg stores: dates in days, timestamps in microseconds."""
    if isinstance(kind, BooleanType):
        return text.lower() in ("true", "1")
    if isinstance(kind, IntegerType | LongType):
        return int(text)
    if isinstance(kind, FloatType | DoubleType):
        return float(text)
    if isinstance(kind, DecimalType):
        return Decimal(text)
    if isinstance(kind, DateType):
        return (date.fromisoformat(text) - _EPOCH_DATE).days
    if isinstance(kind, TimestampType | TimestamptzType):
        moment = datetime.fromisoformat(re.sub(r"([+-]\d\d)$", r"\1:00", text))
        since = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH
        return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
    if isinstance(kind, StringType):
        return text
    raise ValueError(f"cannot convert text to {kind}")
