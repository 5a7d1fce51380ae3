"""Reports how Glue differs from the live release: which tables are missing, left over, or changed by someone else.

This module changes nothing. `busco.catalog.glue.sync` corrects everything that is found here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from busco.catalog import glue
from busco.catalog.glue_calls import Calls
from busco.catalog.glue_entries import Entries
from busco.lake.drift import FAILURES, Finding, reason
from busco.lake.layout import EnvironmentLayout, split_table
from busco.lake.objects import ObjectStore
from busco.lake.releases import read_live

# The keys under which engines identify themselves in the summary of an Iceberg snapshot.
_SIGNS = ("engine-name", "engine-version", "trino_query_id", "trino_user", "spark.app.id", "app-id", "user")
_TRAIL = "see CloudTrail"


@dataclass(frozen=True)
class Catalog:
    """The Glue catalog that shows the live release: the arguments of `glue.sync`, except for those of the lake.

    Attributes:
        glue: a boto3 Glue client with `client_options`.
        database_of: returns the Glue database of a layer.
        at_once: the number of concurrent calls to Glue.
    """

    glue: Any
    database_of: Callable[[str], str]
    layers: tuple[str, ...]
    at_once: int

    def name(self, table: str) -> str:
        """Returns a table's name in Glue, such as `busco_gold.fct_orders`."""
        layer, name = split_table(table)
        return f"{self.database_of(layer)}.{name}"

    def entries(self) -> Mapping[str, dict[str, Any]]:
        """Returns all entries in the databases of all layers, by table (such as `gold.fct_orders`)."""
        return glue.read_entries(Calls(self.glue, self.at_once), self.database_of, self.layers)

    def sync(self, store: ObjectStore, environment: EnvironmentLayout) -> glue.Shown | None:
        """Makes Glue and the docs page show the live release (`glue.sync`)."""
        return glue.sync(self.glue, store, environment, self.database_of, self.layers, self.at_once)


def compare(
    catalog: Catalog, store: ObjectStore, environment: EnvironmentLayout
) -> tuple[list[Finding], tuple[str, ...]]:
    """Returns how Glue differs from the live release, and the names of the tables that are not the platform's.

    A difference can also mean that a release is being published and that not all tables have been switched yet.
    """
    found = catalog.entries()
    live = read_live(store, environment)
    if live is None:
        return [], ()
    entries = Entries(store, environment, live.release)
    findings = []
    for table in sorted(live.release.tables):
        entry = found.get(table)
        if entry is None:
            findings.append(_missing(catalog, entries, table))
            continue
        try:
            if not entries.shows(table, entry):
                findings.append(_changed(catalog, entries, table, entry))
        except FAILURES as error:
            # The record is read only if the entry is not as a sync wrote it (G2).
            findings.append(
                _changed(catalog, entries, table, entry, f"the version's record can't be read: {reason(error)}")
            )
    others = sorted(found.keys() - live.release.tables.keys())
    findings += [
        _left_over(catalog, store, table, found[table]) for table in others if entries.is_ours(table, found[table])
    ]
    return findings, tuple(catalog.name(table) for table in others if not entries.is_ours(table, found[table]))


def _missing(catalog: Catalog, entries: Entries, table: str) -> Finding:
    return Finding(
        table=table,
        kind="Glue table",
        where=catalog.name(table),
        problem="is missing",
        live=True,
        expected=f"metadata {entries.store.url(entries.release.tables[table].metadata)}",
        who=f"{_TRAIL} (DeleteTable)",
        remedy="repair recreates it",
        repairable=True,
    )


def _changed(catalog: Catalog, entries: Entries, table: str, entry: Mapping[str, Any], why: str = "") -> Finding:
    """Returns a finding for an entry that is not what it should be.

    Args:
        why: why the expected entry can't be determined, so that it can't be corrected; empty if it can be.
    """
    metadata = entries.store.url(entries.release.tables[table].metadata)
    expected, found = (f"metadata {metadata}", _pointer(entry)) if why else entries.difference(table, entry)
    when, who = _author(entries.store, entry)
    return Finding(
        table=table,
        kind="Glue table",
        where=catalog.name(table),
        problem="was changed",
        live=True,
        expected=expected,
        found=found,
        when=when,
        who=who,
        remedy=f"repair can't correct it: {why}" if why else "repair makes it show the live release again",
        repairable=not why,
    )


def _left_over(catalog: Catalog, store: ObjectStore, table: str, entry: Mapping[str, Any]) -> Finding:
    when, who = _author(store, entry)
    return Finding(
        table=table,
        kind="Glue table",
        where=catalog.name(table),
        problem="is left over from an earlier release",
        live=False,
        found=_pointer(entry),
        when=when,
        who=who,
        remedy="repair removes it from Glue",
        repairable=True,
    )


def _pointer(entry: Mapping[str, Any]) -> str:
    """Returns the URL of the metadata that an entry points to; empty if it points to none."""
    return str(entry.get("Parameters", {}).get("metadata_location", ""))


def _author(store: ObjectStore, entry: Mapping[str, Any]) -> tuple[datetime | None, str]:
    """Returns when an entry was last changed (UTC), and what its metadata and Glue reveal about who changed it."""
    when = entry.get("UpdateTime") or entry.get("CreateTime")
    signs = _signs(store, _pointer(entry))
    if creator := entry.get("CreatedBy", ""):
        signs.append(f"the table was created by {creator}")
    return when.astimezone(UTC) if when else None, "; ".join([*signs, f"{_TRAIL} (UpdateTable)"])


def _signs(store: ObjectStore, metadata_url: str) -> list[str]:
    """Returns what the engine that wrote a table's newest snapshot has recorded about itself, if that can be read."""
    try:
        stored = store.get(store.key(metadata_url))
        metadata = json.loads(stored.body) if stored else {}
        newest = metadata.get("current-snapshot-id")
        summaries = [one["summary"] for one in metadata.get("snapshots", []) if one["snapshot-id"] == newest]
        return [f"{name} {summary[name]}" for summary in summaries for name in _SIGNS if name in summary]
    except (*FAILURES, KeyError, TypeError, AttributeError):
        return []
