"""Determines what a table's entry in Glue should contain, and whether it already does (rule G2)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

from busco.errors import BuscoError
from busco.lake import types
from busco.lake.contents import read_record
from busco.lake.layout import EnvironmentLayout, split_table
from busco.lake.metadata_json import location_of
from busco.lake.objects import ObjectStore, canonical_json
from busco.lake.records import Published, Release, Version
from busco.project import Project

# AWS Glue API reference: column comments have at most 255 characters, descriptions 2,048.
_COMMENT, _DESCRIPTION = 255, 2048
_MANAGED = "busco.managed"
_CHECKSUM = "busco.checksum"

# A table's columns as (name, Glue type), and its partition columns, separated by commas.
_Shape = tuple[list[tuple[str, str]], str]


class Unreadable(BuscoError):
    """A version's own record, which has the table's columns, is missing or damaged."""


class Entries:
    """The Glue entries of a release's tables.

    Most entries are checked without reading the records of versions, which would take one read per table. This works
    because a version never changes, and an entry contains its own checksum: if the checksum is right and the entry
    names the right version, its columns are that version's. Only an entry that someone else has changed, or that was
    written before there were checksums, is compared with the version's record.
    """

    def __init__(self, store: ObjectStore, environment: EnvironmentLayout, release: Release) -> None:
        self.store, self.environment, self.release = store, environment, release
        self.projects = _projects(store, release)

    def shows(self, table: str, found: Mapping[str, Any]) -> bool:
        """Returns whether an entry, as Glue returned it, already shows the table as it is in the release.

        Args:
            table: such as `gold.fct_orders`.

        Raises:
            Unreadable: the version's record is needed, but is missing or damaged.
        """
        shape = _shape_of_entry(found) if _is_as_written(found) else self._shape(table)
        return _content(found) == _content(self._input(table, found, shape))

    def table_input(self, table: str, found: Mapping[str, Any] | None) -> dict[str, Any]:
        """Returns the `TableInput` that creates or updates a table's entry.

        Args:
            found: the entry as Glue returned it, or None if there is none.

        Raises:
            Unreadable: the version's record is missing or damaged.
        """
        entry = self._input(table, found, self._shape(table))
        entry["Parameters"][_CHECKSUM] = _checksum(entry)
        return entry

    def moves(self, table: str, found: Mapping[str, Any] | None) -> bool:
        """Returns whether writing the entry would make it point to different data."""
        pointer = self.store.url(self.release.tables[table].metadata)
        return found is None or found.get("Parameters", {}).get("metadata_location") != pointer

    def is_ours(self, table: str, found: Mapping[str, Any]) -> bool:
        """Returns whether an entry was created by a sync rather than by someone else.

        Another engine that commits to a table removes the platform's parameters. But it writes below the table's own
        location, so the entry still points into the folder of this table's metadata.
        """
        parameters = found.get("Parameters", {})
        folders = tuple(self.store.url(f"{folder}{table}/") for folder in self.environment.all_metadata)
        return parameters.get(_MANAGED) == "true" or str(parameters.get("metadata_location", "")).startswith(folders)

    def difference(self, table: str, found: Mapping[str, Any]) -> tuple[str, str]:
        """Returns how an entry differs from what it should be: what is expected, and what was found."""
        wanted, has = _content(self.table_input(table, found)), _content(found)
        pairs = [
            (f"parameter {name}", wanted["parameters"].get(name, "none"), has["parameters"].get(name, "none"))
            for name in sorted({*wanted["parameters"], *has["parameters"]})
        ]
        pairs += [(name, str(wanted[name]), str(has[name])) for name in wanted if name != "parameters"]
        different = [(name, one, other) for name, one, other in pairs if one != other]
        return (
            "; ".join(f"{name}: {one}" for name, one, _ in different),
            "; ".join(f"{name}: {other}" for name, _, other in different),
        )

    def _version(self, table: str) -> Version:
        """Returns the record of a table's version, which has the columns."""
        return read_record(self.store, self.release.tables[table])

    def _shape(self, table: str) -> _Shape:
        try:
            version = self._version(table)
            columns = [(column.name, types.glue(types.parse(column.type, column.name))) for column in version.columns]
        except (BuscoError, ValueError) as error:
            raise Unreadable(str(error)) from error
        return columns, ",".join(version.partition_by)

    def _input(self, table: str, found: Mapping[str, Any] | None, shape: _Shape) -> dict[str, Any]:
        version, (columns, partition_by) = self.release.tables[table], shape
        node = _node(version, self.projects)
        comments = {name: column.get("description", "") for name, column in node.get("columns", {}).items()}
        described = []
        for name, kind in columns:
            column = {"Name": name, "Type": kind}
            if comment := _short(comments.get(name, ""), _COMMENT):
                column["Comment"] = comment
            described.append(column)
        parameters = {
            "table_type": "ICEBERG",
            "metadata_location": self.store.url(version.metadata),
            "EXTERNAL": "TRUE",
            _MANAGED: "true",
            "busco.release": self._introduced(version, found),
            "busco.version": version.version,
            "busco.rows": str(version.rows),
            "busco.partition_by": partition_by,
            "busco.unique_id": version.unique_id,
        }
        if stale := self.release.stale.get(table):
            parameters["busco.stale"] = ",".join(stale)
        return {
            "Name": split_table(table)[1],
            "Description": _short(node.get("description", ""), _DESCRIPTION),
            "TableType": "EXTERNAL_TABLE",
            "Parameters": parameters,
            "PartitionKeys": [],
            "StorageDescriptor": {
                "Columns": described,
                "Location": self.store.url(location_of(version.metadata)),
                "InputFormat": "org.apache.hadoop.mapred.FileInputFormat",
                "OutputFormat": "org.apache.hadoop.mapred.FileOutputFormat",
                "SerdeInfo": {"SerializationLibrary": "org.apache.hadoop.hive.serde2.lazy.LazySimpleSerDe"},
            },
        }

    def _introduced(self, version: Published, found: Mapping[str, Any] | None) -> str:
        """Returns the release that introduced a version.

        If the release's record is too old to say this, the release that the entry names is returned, so that the entry
        is not written for this reason alone.
        """
        parameters = found.get("Parameters", {}) if found else {}
        known = parameters.get("busco.release", "") if parameters.get("busco.version") == version.version else ""
        return version.since or known or self.release.release


def _content(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the part of an entry that readers see, except for its checksum, in a form that can be compared."""
    storage = entry.get("StorageDescriptor", {})
    return _checked(entry) | {
        "table type": entry.get("TableType", ""),
        "partition keys": [key["Name"] for key in entry.get("PartitionKeys") or []],
        "input format": storage.get("InputFormat", ""),
        "output format": storage.get("OutputFormat", ""),
        "SerDe": storage.get("SerdeInfo", {}).get("SerializationLibrary", ""),
    }


def _checked(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the part of an entry that its checksum covers.

    The rest is the same for all tables, and is compared without the version's record.
    """
    storage = entry.get("StorageDescriptor", {})
    return {
        "description": entry.get("Description", ""),
        "parameters": {name: value for name, value in entry.get("Parameters", {}).items() if name != _CHECKSUM},
        "location": storage.get("Location", ""),
        "columns": [
            [column["Name"], column.get("Type", ""), column.get("Comment", "")] for column in storage.get("Columns", [])
        ],
    }


def _checksum(entry: Mapping[str, Any]) -> str:
    return sha256(canonical_json(_checked(entry))).hexdigest()


def _is_as_written(found: Mapping[str, Any]) -> bool:
    """Returns whether nobody has changed what an entry's checksum covers since a sync wrote the entry."""
    return bool(found.get("Parameters", {}).get(_CHECKSUM) == _checksum(found))


def _shape_of_entry(found: Mapping[str, Any]) -> _Shape:
    columns = [(column["Name"], column["Type"]) for column in found["StorageDescriptor"]["Columns"]]
    return columns, found["Parameters"].get("busco.partition_by", "")


def _projects(store: ObjectStore, release: Release) -> list[tuple[str, Project]]:
    """Returns the dbt projects that describe the release's tables, each with its name.

    The published run's manifest comes last: it may have tables that are missing from the docs of its project, if
    those docs are from a newer run (P7).
    """
    described = [*release.docs_by_project().items(), (release.project, release.docs)]
    return [
        (name, Project(json.loads(stored.body)))
        for name, prefix in dict.fromkeys(described)
        if prefix and (stored := store.get(f"{prefix}manifest.json")) is not None
    ]


def _node(version: Published, projects: Sequence[tuple[str, Project]]) -> Mapping[str, Any]:
    """Returns a table's node in its own dbt project or, for a bronze table, in a project that reads it."""
    own = [project for name, project in projects if name == version.project] or [project for _, project in projects]
    for project in own:
        for uid in project.nodes_of(version.unique_id, version.table):
            return project.node(uid)
    return {}


def _short(text: str, most: int) -> str:
    """Returns the text as a single line, cut to the length that Glue allows."""
    flat = " ".join((text or "").split())
    return flat if len(flat) <= most else flat[: most - 1] + "…"
