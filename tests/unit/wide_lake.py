"""Publishes releases with any number of tables, without runs: for tests and benchmarks of showing them in Glue."""

from __future__ import annotations

import json
from collections.abc import Mapping

from busco.lake.compose import with_since
from busco.lake.objects import ObjectStore
from busco.lake.records import Column, Current, Published, Release, Version, utc_now
from tests.unit.lake import ENVIRONMENT, metadata

COLUMNS = (("id", "BIGINT"), ("day", "DATE"), ("x", "VARCHAR"))


def publish(
    store: ObjectStore,
    versions: Mapping[str, str],
    description: str = "",
    comment: str = "the key",
    columns: tuple[tuple[str, str], ...] = COLUMNS,
    has_since: bool = True,
) -> Release:
    """Makes a release live that has the given version of each table, such as `{"gold.t": "v1"}`.

    Args:
        description: the description of every table.
        comment: the comment of every table's column `id`.
        columns: the names and DuckDB types of every table's columns.
        has_since: whether the record states which release introduced each version, as older records do not.
    """
    live = store.get(ENVIRONMENT.current)
    current = live.parse(Current) if live else None
    serial = current.serial + 1 if current else 1
    release_id, docs = f"r{serial}", f"docs/r{serial}/"
    before = store.read(ENVIRONMENT.release(current.release), Release) if current else None
    tables = {table: _version(store, table, version, columns) for table, version in versions.items()}
    if has_since:
        tables = with_since(tables, before.tables if before else {}, release_id)
    release = Release(
        release=release_id,
        previous=current.release if current else None,
        kind="publish",
        environment="prod",
        run="wide",
        epoch=1,
        tables=tables,
        docs=docs,
        project="busco",
        all_docs={"busco": docs},
        who="me",
        created_at=utc_now(),
    )
    nodes = {
        f"model.busco.{table}": {
            "resource_type": "model",
            "schema": table.split(".")[0],
            "name": table.split(".")[1],
            "description": description,
            "columns": {"id": {"name": "id", "description": comment}},
        }
        for table in versions
    }
    manifest = {"nodes": nodes, "sources": {}, "metadata": {"project_name": "busco"}}
    store.put(f"{docs}manifest.json", json.dumps(manifest).encode())
    store.create(ENVIRONMENT.release(release_id), release)
    made = Current(release=release_id, serial=serial)
    if live is None:
        store.create(ENVIRONMENT.current, made)
    else:
        store.swap(ENVIRONMENT.current, made, live.etag)
    return release


def _version(store: ObjectStore, table: str, version: str, columns: tuple[tuple[str, str], ...]) -> Published:
    made = Version(
        table=table,
        version=version,
        columns=tuple(Column(name=name, type=kind) for name, kind in columns),
        rows=1,
        bytes=1,
        unique_id=f"model.busco.{table}",
        project="busco",
    )
    key = ENVIRONMENT.version(table, version)
    store.client.objects.pop(key, None)  # tests use an id again for a version with different columns
    store.create(key, made)
    return Published.of(made, key, metadata(store, table, version))
