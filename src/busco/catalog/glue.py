"""Glue shows the live release of prod: one UpdateTable moves a table to another version (rules G1 to G3)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import ClientError

from busco.errors import BuscoError
from busco.lake import types
from busco.lake.layout import EnvironmentLayout, split_table
from busco.lake.objects import ObjectStore
from busco.lake.records import Current, Release, Version
from busco.lake.releases import Live, read_live
from busco.project import Project

# AWS Glue API reference: column comments have at most 255 characters, descriptions 2,048.
_COMMENT, _DESCRIPTION = 255, 2048
_MANAGED = "busco.managed"


class _MovedOn(Exception):
    """Another release went live while the tables were being switched."""


@dataclass(frozen=True)
class Shown:
    """What a sync did, by table name `busco_gold.fct_orders`."""

    release: str
    created: tuple[str, ...]
    updated: tuple[str, ...]
    deleted: tuple[str, ...]
    unchanged: tuple[str, ...]


def sync(
    glue: Any,
    store: ObjectStore,
    environment: EnvironmentLayout,
    database_of: Callable[[str], str],
    layers: tuple[str, ...],
) -> Shown | None:
    """Makes Glue and `docs/index.html` show the live release; None where nothing was ever published.

    Safe to repeat and to kill: whatever it finds right it leaves alone (G2). When another release goes live
    meanwhile it begins again (G1).

    Args:
        glue: a boto3 Glue client.
        database_of: the database of a layer.

    Raises:
        BuscoError: not prod (G1), or a database is missing.
    """
    if environment.environment != "prod":
        raise BuscoError(f"Glue shows prod only, not {environment.environment}")
    while True:
        live = read_live(store, environment)
        if live is None:
            return None
        try:
            return _Sync(glue, store, environment, database_of, live).run(layers)
        except _MovedOn:
            continue


class _Sync:
    def __init__(
        self,
        glue: Any,
        store: ObjectStore,
        environment: EnvironmentLayout,
        database_of: Callable[[str], str],
        live: Live,
    ) -> None:
        self.glue, self.store, self.environment = glue, store, environment
        self.database_of, self.live = database_of, live
        self.done: dict[str, list[str]] = {"created": [], "updated": [], "deleted": [], "unchanged": []}

    def run(self, layers: tuple[str, ...]) -> Shown:
        release = self.live.release
        project = self._project(release)
        for table in sorted(release.tables):
            self._switch(release.tables[table], release, project)
        for layer in layers:
            self._delete_others(layer, release)
        self._show_docs(release)
        self._still_live()
        done = {kind: tuple(names) for kind, names in self.done.items()}
        return Shown(release=release.release, **done)

    def _project(self, release: Release) -> Project | None:
        stored = self.store.get(f"{release.docs}manifest.json") if release.docs else None
        return Project(json.loads(stored.body)) if stored else None

    def _still_live(self) -> None:
        now = self.store.read(self.environment.current, Current)
        if now is None or now.release != self.live.current.release:
            raise _MovedOn

    def _switch(self, version: Version, release: Release, project: Project | None) -> None:
        """One table: GetTable, current.json, UpdateTable with that VersionId, from the start on a conflict (G1)."""
        layer, name = split_table(version.table)
        database = self.database_of(layer)
        wanted = self._input(version, release, project)
        while True:
            found = self._get(database, name)
            if found and _same(found, wanted):
                self.done["unchanged"].append(f"{database}.{name}")
                return
            self._still_live()
            try:
                if found is None:
                    self.glue.create_table(DatabaseName=database, TableInput=wanted)
                    self.done["created"].append(f"{database}.{name}")
                else:
                    self.glue.update_table(
                        DatabaseName=database, TableInput=wanted, VersionId=found["VersionId"], SkipArchive=True
                    )
                    self.done["updated"].append(f"{database}.{name}")
                return
            except ClientError as error:
                if _code(error) == "EntityNotFoundException" and found is None:
                    raise BuscoError(
                        f"the Glue database {database} does not exist", "deploy deploy/aws/lake.yaml"
                    ) from error
                if _code(error) not in (
                    "ConcurrentModificationException",
                    "AlreadyExistsException",
                    "EntityNotFoundException",
                ):
                    raise

    def _get(self, database: str, name: str) -> dict[str, Any] | None:
        try:
            return dict(self.glue.get_table(DatabaseName=database, Name=name)["Table"])
        except ClientError as error:
            if _code(error) == "EntityNotFoundException":
                return None
            raise

    def _delete_others(self, layer: str, release: Release) -> None:
        database = self.database_of(layer)
        wanted = {split_table(table)[1] for table in release.tables if split_table(table)[0] == layer}
        for page in self.glue.get_paginator("get_tables").paginate(DatabaseName=database):
            for table in page["TableList"]:
                if table["Name"] in wanted or table.get("Parameters", {}).get(_MANAGED) != "true":
                    continue
                self._still_live()
                try:
                    self.glue.delete_table(DatabaseName=database, Name=table["Name"])
                except ClientError as error:
                    if _code(error) != "EntityNotFoundException":
                        raise
                self.done["deleted"].append(f"{database}.{table['Name']}")

    def _show_docs(self, release: Release) -> None:
        page = self.store.get(f"{release.docs}index.html") if release.docs else None
        shown = self.store.get("docs/index.html")
        if page is not None and (shown is None or shown.body != page.body):
            self._still_live()
            self.store.put("docs/index.html", page.body, "text/html; charset=utf-8")

    def _input(self, version: Version, release: Release, project: Project | None) -> dict[str, Any]:
        node: Mapping[str, Any] = {}
        if project is not None and version.unique_id:
            try:
                node = project.node(version.unique_id)
            except KeyError:
                node = {}
        comments = {name: column.get("description", "") for name, column in node.get("columns", {}).items()}
        columns = []
        for column in version.columns:
            said = {"Name": column.name, "Type": types.glue(types.parse(column.type, column.name))}
            if comment := _short(comments.get(column.name, ""), _COMMENT):
                said["Comment"] = comment
            columns.append(said)
        parameters = {
            "table_type": "ICEBERG",
            "metadata_location": self.store.url(version.metadata),
            "EXTERNAL": "TRUE",
            _MANAGED: "true",
            "busco.release": release.release,
            "busco.version": version.version,
            "busco.rows": str(version.rows),
            "busco.partition_by": ",".join(version.partition_by),
            "busco.unique_id": version.unique_id,
        }
        if stale := release.stale.get(version.table):
            parameters["busco.stale"] = ",".join(stale)
        return {
            "Name": split_table(version.table)[1],
            "Description": _short(node.get("description", ""), _DESCRIPTION),
            "TableType": "EXTERNAL_TABLE",
            "Parameters": parameters,
            "PartitionKeys": [],
            "StorageDescriptor": {
                "Columns": columns,
                "Location": self.store.url(self.environment.iceberg(version.table)),
                "InputFormat": "org.apache.hadoop.mapred.FileInputFormat",
                "OutputFormat": "org.apache.hadoop.mapred.FileOutputFormat",
                "SerdeInfo": {"SerializationLibrary": "org.apache.hadoop.hive.serde2.lazy.LazySimpleSerDe"},
            },
        }


def _same(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether a table shows what it should already (G2)."""
    storage, target = found.get("StorageDescriptor", {}), wanted["StorageDescriptor"]
    return bool(
        found.get("Parameters") == wanted["Parameters"]
        and found.get("Description", "") == wanted["Description"]
        and storage.get("Location") == target["Location"]
        and storage.get("Columns") == target["Columns"]
    )


def _short(text: str, most: int) -> str:
    """Text in one line, cut to what Glue takes."""
    flat = " ".join((text or "").split())
    return flat if len(flat) <= most else flat[: most - 1] + "…"


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))
