"""Edits the location and descriptions in Iceberg metadata, without reading data or needing an Iceberg library."""

from __future__ import annotations

import copy
import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from busco.errors import BuscoError
from busco.lake.layout import EnvironmentLayout
from busco.lake.objects import AlreadyExists, ObjectStore, canonical_json

# Iceberg's names for the contents of lists and maps. A description may leave them out of a nested field's path.
_CONTENTS = ("element", "key", "value")


@dataclass(frozen=True)
class Descriptions:
    """The descriptions of a table and of its columns, as in the dbt project.

    Attributes:
        table: the table's description; may be empty and have several lines.
        columns: the description of each column by name; a nested field is named by its path, such as `address.city`.
            Paths within lists and maps may leave out `element`, `key` and `value`.
    """

    table: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)

    @property
    def hash(self) -> str:
        """A hash of the descriptions (16 hexadecimal digits); empty if nothing is described."""
        described = {name: text for name, text in self.columns.items() if text}
        if not self.table and not described:
            return ""
        return hashlib.sha256(canonical_json([self.table, described])).hexdigest()[:16]

    def of(self, path: Sequence[str], short: Sequence[str] = ()) -> str:
        """Returns the description of a field, or an empty string; names are case-insensitive.

        Args:
            path: the field's path, with the names of list and map contents.
            short: the path without them, if it differs.
        """
        for names in (path, short):
            if text := self._by_name.get(".".join(names).lower(), ""):
                return text
        return ""

    @cached_property
    def _by_name(self) -> dict[str, str]:
        return {name.lower(): text for name, text in self.columns.items()}


NONE = Descriptions()


def location_of(metadata: str) -> str:
    """Returns the Iceberg `location` of the metadata file with this key."""
    return metadata.rpartition("/metadata/")[0]


def table_uuid(layout: EnvironmentLayout, table: str) -> uuid.UUID:
    """Returns a table's Iceberg UUID, which is the same for all of its versions."""
    return uuid.uuid5(uuid.NAMESPACE_URL, f"busco:{layout.shared_location(table)}")


def snapshot_number(text: str) -> int:
    """Returns the snapshot id of the version or manifest with this name: a positive 63-bit number."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def edited(metadata: Mapping[str, Any], location: str, descriptions: Descriptions) -> dict[str, Any]:
    """Returns a copy of a table's metadata with another location, and with these descriptions in place of its own.

    Args:
        metadata: the content of a metadata.json of format version 2.
        location: the URL of the location.
    """
    result = copy.deepcopy(dict(metadata))
    result["location"] = location
    properties = {name: value for name, value in result.get("properties", {}).items() if name != "comment"}
    result["properties"] = {**properties, **({"comment": descriptions.table} if descriptions.table else {})}
    for schema in result["schemas"]:
        _describe_fields(schema["fields"], (), (), descriptions)
    return result


def copy_metadata(store: ObjectStore, source: str, target: str, descriptions: Descriptions) -> None:
    """Writes a new metadata file for the same data files as an existing one, unless the new file already exists.

    Args:
        source, target: the keys of the existing and of the new metadata file; their locations differ.

    Raises:
        BuscoError: there is no metadata under either key, or the existing metadata is damaged.
    """
    if source == target:
        return
    stored = store.get(source)
    if stored is None:
        if not store.missing([target]):
            return
        raise BuscoError(f"the Iceberg metadata {store.url(source)} is missing", "restore it: busco release repair")
    try:
        metadata = edited(json.loads(stored.body), store.url(location_of(target)), descriptions)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise BuscoError(
            f"the Iceberg metadata {store.url(source)} is damaged", "restore it: busco release repair"
        ) from error
    write(store, target, metadata)


def write(store: ObjectStore, key: str, metadata: Mapping[str, Any]) -> None:
    """Writes a metadata file, unless an equivalent one with this key exists: its name determines its content.

    Raises:
        BuscoError: the existing object is not equivalent.
    """
    try:
        store.create(key, json.dumps(metadata).encode())
    except AlreadyExists:
        found = store.get(key)
        if found is None:
            raise
        try:
            same = _meaning(json.loads(found.body)) == _meaning(metadata)
        except (ValueError, KeyError, TypeError):
            same = False
        if not same:
            raise store.occupied(key) from None


def _meaning(metadata: Mapping[str, Any]) -> list[Any]:
    """Returns what is the same in all metadata files that are written under one key.

    Times, the run and the location of the manifest list can differ. So can descriptions, because a repair may not find
    the original ones.
    """
    plain = edited(metadata, metadata["location"], NONE)
    (snapshot,) = plain["snapshots"]
    return [
        *(plain[name] for name in ("table-uuid", "location")),
        *([part["fields"] for part in plain[name]] for name in ("schemas", "partition-specs")),
        plain["properties"].get("busco.version"),
        *(snapshot[name] for name in ("snapshot-id", "schema-id")),
        *(snapshot["summary"].get(name) for name in ("total-records", "total-data-files", "total-files-size")),
    ]


def _describe_fields(
    fields: Sequence[dict[str, Any]], path: tuple[str, ...], short: tuple[str, ...], descriptions: Descriptions
) -> None:
    """Sets the descriptions of fields; `path` and `short` are those of the fields' parent, as in `Descriptions.of`."""
    for one in fields:
        paths = (*path, one["name"]), (*short, one["name"])
        one.pop("doc", None)
        if text := descriptions.of(*paths):
            one["doc"] = text
        _describe_type(one["type"], *paths, descriptions)


def _describe_type(kind: Any, path: tuple[str, ...], short: tuple[str, ...], descriptions: Descriptions) -> None:
    if not isinstance(kind, dict):
        return
    if kind["type"] == "struct":
        _describe_fields(kind["fields"], path, short, descriptions)
    for part in _CONTENTS:
        if part in kind:
            _describe_type(kind[part], (*path, part), short, descriptions)
