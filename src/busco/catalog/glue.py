"""Shows prod's live release in Glue; a single UpdateTable call switches a table's version (rules G1 to G3)."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any
from urllib.parse import quote

from botocore.exceptions import ClientError

from busco.errors import BuscoError
from busco.lake import types
from busco.lake.layout import EnvironmentLayout, docs_page, split_table
from busco.lake.objects import AlreadyExists, Moved, ObjectStore
from busco.lake.records import Current, Release, Version
from busco.lake.releases import Live, read_live
from busco.project import Project, table_name

# AWS Glue API reference: column comments have at most 255 characters, descriptions 2,048.
_COMMENT, _DESCRIPTION = 255, 2048
_MANAGED = "busco.managed"
_HTML = "text/html; charset=utf-8"


class _MovedOn(Exception):
    """Another release went live while tables were being switched.

    `deleted` is the table (such as `busco_gold.fct_orders`) that has just been deleted and may be in the new release;
    '' if there is no such table.
    """

    def __init__(self, deleted: str = "") -> None:
        super().__init__(deleted)
        self.deleted = deleted


@dataclass(frozen=True)
class Shown:
    """The changes that a sync made, as table names such as `busco_gold.fct_orders`."""

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
    """Makes Glue and `docs/index.html` show the live release; returns None if nothing has been published yet.

    Safe to repeat and to kill: anything that is already correct is left alone (G2). If another release goes live in the
    meantime, the sync starts over (G1).

    Args:
        glue: a boto3 Glue client.
        database_of: returns the Glue database of a layer.

    Raises:
        BuscoError: the environment is not prod (G1), or a database is missing.
    """
    if environment.environment != "prod":
        raise BuscoError(f"Glue only shows prod, not {environment.environment}")
    first = ""
    while True:
        live = read_live(store, environment)
        if live is None:
            return None
        try:
            return _Sync(glue, store, environment, database_of, live).run(layers, first)
        except _MovedOn as moved:
            first = moved.deleted


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

    def run(self, layers: tuple[str, ...], first: str = "") -> Shown:
        release = self.live.release
        projects = self._projects(release)
        for table in sorted(release.tables, key=lambda table: (self._name(table) != first, table)):
            self._switch(release.tables[table], release, projects)
        for layer in layers:
            self._delete_others(layer, release)
        self._show_docs(release)
        self._still_live()
        done = {kind: tuple(names) for kind, names in self.done.items()}
        return Shown(release=release.release, **done)

    def _name(self, table: str) -> str:
        """Returns a table's name in Glue, such as `busco_gold.fct_orders`."""
        layer, name = split_table(table)
        return f"{self.database_of(layer)}.{name}"

    def _projects(self, release: Release) -> list[tuple[str, Project]]:
        """Returns the dbt projects that describe the release's tables, each with its name.

        The published run's manifest comes last: it may have tables that the docs of its project lack, if those docs
        are from a newer run (P7).
        """
        described = [*release.docs_by_project().items(), (release.project, release.docs)]
        return [
            (name, Project(json.loads(stored.body)))
            for name, prefix in dict.fromkeys(described)
            if prefix and (stored := self.store.get(f"{prefix}manifest.json")) is not None
        ]

    def _still_live(self, deleted: str = "") -> None:
        now = self.store.read(self.environment.current, Current)
        if now is None or now.release != self.live.current.release:
            raise _MovedOn(deleted)

    def _switch(self, version: Version, release: Release, projects: Sequence[tuple[str, Project]]) -> None:
        """Switches a table to the release's version; starts over on a conflict (G1).

        It calls GetTable, reads current.json, and calls UpdateTable with the VersionId from GetTable.
        """
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
                if table["Name"] not in wanted and _is_ours(table):
                    self._delete(database, table["Name"])

    def _delete(self, database: str, name: str) -> None:
        """Deletes a table that the release does not have (G1).

        DeleteTable does not accept a VersionId. So the table is read again right before the call, because someone may
        have created a table of their own with that name. The live release is read again right after the call: if
        another release is live, its sync may have just created the table, so this sync starts over with that table.
        """
        found = self._get(database, name)
        if found is None or not _is_ours(found):
            return
        self._still_live()
        try:
            self.glue.delete_table(DatabaseName=database, Name=name)
        except ClientError as error:
            if _code(error) != "EntityNotFoundException":
                raise
        else:
            self.done["deleted"].append(f"{database}.{name}")
        self._still_live(f"{database}.{name}")

    def _show_docs(self, release: Release) -> None:
        """Shows a single project's page as `docs/index.html`.

        If there are several projects, `docs/index.html` links to a page for each of them.
        """
        pages = {
            name: stored.body
            for name, prefix in sorted(release.docs_by_project().items())
            if (stored := self.store.get(f"{prefix}index.html")) is not None
        }
        if len(pages) > 1:
            for name, page in pages.items():
                self._show_page(docs_page(name), page)
        if pages:
            self._show_page("docs/index.html", _contents(pages) if len(pages) > 1 else next(iter(pages.values())))

    def _show_page(self, key: str, page: bytes) -> None:
        """Writes a page; starts over if the stored page has changed since it was read.

        The stored page is read before the live release is checked, so a newer sync's page is never overwritten.
        """
        while True:
            shown = self.store.get(key)
            if shown is not None and shown.body == page:
                return
            self._still_live()
            with contextlib.suppress(AlreadyExists, Moved):
                if shown is None:
                    self.store.create(key, page, _HTML)
                else:
                    self.store.swap(key, page, shown.etag, _HTML)
                return

    def _input(self, version: Version, release: Release, projects: Sequence[tuple[str, Project]]) -> dict[str, Any]:
        node = _node(version, projects)
        comments = {name: column.get("description", "") for name, column in node.get("columns", {}).items()}
        columns = []
        for column in version.columns:
            described = {"Name": column.name, "Type": types.glue(types.parse(column.type, column.name))}
            if comment := _short(comments.get(column.name, ""), _COMMENT):
                described["Comment"] = comment
            columns.append(described)
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


def _node(version: Version, projects: Sequence[tuple[str, Project]]) -> Mapping[str, Any]:
    """Returns a table's node in its own dbt project or, for a bronze table, in a project that reads it."""
    own = [project for name, project in projects if name == version.project] or [project for _, project in projects]
    for project in own:
        for uid in (version.unique_id, *project.sources):
            try:
                if table_name(project.node(uid)) == version.table:
                    return project.node(uid)
            except KeyError:
                continue
    return {}


def _is_ours(table: Mapping[str, Any]) -> bool:
    """Returns whether a table was created by a sync rather than by someone else."""
    return bool(table.get("Parameters", {}).get(_MANAGED) == "true")


def _contents(names: Iterable[str]) -> bytes:
    """Returns a page with links to each project's docs."""
    listed = "".join(f'<li><a href="projects/{quote(name)}.html">{escape(name)}</a></li>' for name in names)
    title = "dbt projects in this lake"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title></head>'
        f"<body><h1>{title}</h1><ul>{listed}</ul></body></html>"
    ).encode()


def _same(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Returns whether a table already shows what it should (G2)."""
    storage, target = found.get("StorageDescriptor", {}), wanted["StorageDescriptor"]
    return bool(
        found.get("Parameters") == wanted["Parameters"]
        and found.get("Description", "") == wanted["Description"]
        and storage.get("Location") == target["Location"]
        and storage.get("Columns") == target["Columns"]
    )


def _short(text: str, most: int) -> str:
    """Returns a text as a single line, cut to the length that Glue allows."""
    flat = " ".join((text or "").split())
    return flat if len(flat) <= most else flat[: most - 1] + "…"


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))
