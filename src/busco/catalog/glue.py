"""Glue shows the live release of prod: one UpdateTable moves a table to another version (rules G1 to G3)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any
from urllib.parse import quote

from botocore.exceptions import ClientError

from busco.errors import BuscoError
from busco.lake import types
from busco.lake.layout import EnvironmentLayout, split_table
from busco.lake.objects import ObjectStore
from busco.lake.records import Current, Release, Version
from busco.lake.releases import Live, read_live
from busco.project import Project, table_name

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
        projects = self._projects(release)
        for table in sorted(release.tables):
            self._switch(release.tables[table], release, projects)
        for layer in layers:
            self._delete_others(layer, release)
        self._show_docs(release)
        self._still_live()
        done = {kind: tuple(names) for kind, names in self.done.items()}
        return Shown(release=release.release, **done)

    def _projects(self, release: Release) -> dict[str, Project]:
        """The dbt projects that describe the release's tables, by name."""
        manifests = {
            name: stored
            for name, prefix in release.docs_by_project().items()
            if (stored := self.store.get(f"{prefix}manifest.json")) is not None
        }
        return {name: Project(json.loads(stored.body)) for name, stored in manifests.items()}

    def _still_live(self) -> None:
        now = self.store.read(self.environment.current, Current)
        if now is None or now.release != self.live.current.release:
            raise _MovedOn

    def _switch(self, version: Version, release: Release, projects: Mapping[str, Project]) -> None:
        """One table: GetTable, current.json, UpdateTable with that VersionId, from the start on a conflict (G1)."""
        layer, name = split_table(version.table)
        database = self.database_of(layer)
        wanted = self._input(version, release, projects)
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
        """One project's page is `docs/index.html`; of several each has its own, and that one leads to them."""
        pages = {
            name: stored.body
            for name, prefix in sorted(release.docs_by_project().items())
            if (stored := self.store.get(f"{prefix}index.html")) is not None
        }
        if len(pages) > 1:
            for name, page in pages.items():
                self._show_page(f"docs/projects/{name}.html", page)
        if pages:
            self._show_page("docs/index.html", _contents(pages) if len(pages) > 1 else next(iter(pages.values())))

    def _show_page(self, key: str, page: bytes) -> None:
        shown = self.store.get(key)
        if shown is None or shown.body != page:
            self._still_live()
            self.store.put(key, page, "text/html; charset=utf-8")

    def _input(self, version: Version, release: Release, projects: Mapping[str, Project]) -> dict[str, Any]:
        node = _said(version, projects)
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


def _said(version: Version, projects: Mapping[str, Project]) -> Mapping[str, Any]:
    """What a table's own dbt project says of it; of a bronze table, what one says that reads it."""
    own = [projects[version.project]] if version.project in projects else list(projects.values())
    for project in own:
        for uid in (version.unique_id, *project.sources):
            try:
                if table_name(project.node(uid)) == version.table:
                    return project.node(uid)
            except KeyError:
                continue
    return {}


def _contents(names: Iterable[str]) -> bytes:
    """A page that leads to the docs of each project."""
    listed = "".join(f'<li><a href="projects/{quote(name)}.html">{escape(name)}</a></li>' for name in names)
    title = "dbt projects of this lake"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title></head>'
        f"<body><h1>{title}</h1><ul>{listed}</ul></body></html>"
    ).encode()


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
