"""Finds and repairs drift: differences between what the releases name and what is in the bucket and in Glue (G4)."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from busco.catalog.glue_drift import Catalog, compare
from busco.lake import releases
from busco.lake.contents import layout_of
from busco.lake.drift import FAILURES, Finding, inspect, reason, repair_objects
from busco.lake.inventory import Broken, Inventory
from busco.lake.layout import EnvironmentLayout
from busco.lake.metadata_json import NONE, Descriptions
from busco.lake.objects import ObjectStore
from busco.lake.records import Published, Release
from busco.project import Project
from busco.text import count


@dataclass(frozen=True)
class Report:
    """What a check or a repair found.

    Attributes:
        release: the live release's id; empty if nothing has been published.
        releases, objects: the numbers of releases and objects that were compared.
        findings: the differences; after a repair, the remaining ones.
        tables: the number of tables that were compared in Glue.
        unknown: the tables in the Glue databases that are not the platform's; they are left alone.
        repaired: the differences that were repaired, each with a description of what was done.
    """

    release: str
    releases: int
    objects: int
    findings: tuple[Finding, ...]
    tables: int = 0
    unknown: tuple[str, ...] = ()
    repaired: tuple[tuple[Finding, str], ...] = field(default=())

    def summary(self) -> str:
        """Returns a sentence for a check or repair that left no findings."""
        if not self.release:
            return "nothing is published yet"
        kept = count(self.releases, "release")
        shown = f", and Glue shows its {count(self.tables, 'table')}" if self.tables else ""
        return f"{self.release}: all {self.objects:,} objects in {kept} are unchanged{shown}"

    def as_json(self) -> dict[str, Any]:
        """Returns the report as a dictionary for JSON output."""
        return {
            "release": self.release,
            "releases": self.releases,
            "objects": self.objects,
            "tables": self.tables,
            "unknown": list(self.unknown),
            "findings": [one.as_json() for one in self.findings],
            "repaired": [{**one.as_json(), "done": done} for one, done in self.repaired],
        }


def check(store: ObjectStore, environment: EnvironmentLayout, catalog: Catalog | None) -> Report:
    """Compares everything, and changes nothing.

    Args:
        catalog: the catalog that shows the environment's live release; None if there is none (G1).
    """
    return _report(store, environment, catalog, Inventory(store, environment))


def repair(
    store: ObjectStore,
    environment: EnvironmentLayout,
    catalog: Catalog | None,
    who: str,
    can_make_metadata: bool,
    say: Callable[[Finding, str], None] = lambda *_: None,
) -> Report:
    """Repairs what can be repaired, and then compares everything again.

    The objects are repaired first. Then the live release is published again if parts of it are in format 1, and finally
    Glue is repaired. This can be killed and repeated safely.

    Args:
        catalog: as for `check`.
        who: recorded as the author if a release has to be published again.
        can_make_metadata: whether this environment has an Iceberg library.
        say: called with each finding as soon as it is repaired, and with a description of what was done.
    """
    repaired: list[tuple[Finding, str]] = []

    def note(finding: Finding, done: str) -> None:
        repaired.append((finding, done))
        say(finding, done)

    inventory = Inventory(store, environment)

    def remaker(kept: Sequence[Release]) -> Callable[[Broken], str]:
        from busco.lake.remake import reader, remake

        describe, read = _describe(store, environment, kept), reader(store)
        return lambda lost: remake(store, environment, lost, describe, read)

    left = repair_objects(store, environment, inventory, remaker if can_make_metadata else None, note)
    try:
        if not any(one.live for one in left):
            releases.renew(store, environment, who)
    finally:
        if catalog is not None and inventory.survey().release is not None:
            left += _repair_glue(store, environment, catalog, note)
    report = _report(store, environment, catalog, inventory)
    why = {(one.where, one.kind): one for one in left}
    findings = tuple(why.get((one.where, one.kind), one) for one in report.findings)
    return replace(report, repaired=tuple(repaired), findings=findings)


def _repair_glue(
    store: ObjectStore, environment: EnvironmentLayout, catalog: Catalog, note: Callable[[Finding, str], None]
) -> list[Finding]:
    """Makes Glue show the live release, and returns the findings that are left."""
    wrong, _ = compare(catalog, store, environment)
    why = ""
    try:
        catalog.sync(store, environment)
    except FAILURES as error:  # the sync has shown all tables that it could
        why = reason(error)
    left = {one.where: one for one in compare(catalog, store, environment)[0]}
    for finding in wrong:
        if finding.where not in left:
            note(finding, "corrected in Glue")
    return [
        replace(one, remedy=f"not corrected: {why}", repairable=False) if why and one.repairable else one
        for one in left.values()
    ]


def _report(
    store: ObjectStore, environment: EnvironmentLayout, catalog: Catalog | None, inventory: Inventory
) -> Report:
    survey = inventory.survey()
    # Without the live release's record, there is nothing to compare Glue with.
    catalog = catalog if survey.release else None
    wrong, unknown = compare(catalog, store, environment) if catalog else ([], ())
    return Report(
        release=survey.release.release if survey.release else "",
        releases=len(survey.releases),
        objects=survey.objects,
        findings=(*inspect(store, survey), *wrong),
        tables=len(survey.release.tables) if survey.release and catalog else 0,
        unknown=unknown,
    )


def _describe(
    store: ObjectStore, environment: EnvironmentLayout, kept: Sequence[Release]
) -> Callable[[Published], tuple[Descriptions, str]]:
    """Returns a function that finds a version's descriptions in the docs of releases, and the run that made it.

    Only descriptions whose hash matches the key of the version's metadata are returned.
    """
    by_id = {release.release: release for release in kept}

    @cache
    def project(prefix: str) -> Project | None:
        stored = store.get(f"{prefix}manifest.json")
        try:
            return Project(json.loads(stored.body)) if stored else None
        except (AttributeError, KeyError, TypeError, ValueError):  # it was overwritten
            return None

    def describe(published: Published) -> tuple[Descriptions, str]:
        own = layout_of(environment, published)
        since = by_id.get(published.since)
        run = since.run if since and published.table in since.built else ""
        for release in kept:
            named = release.tables.get(published.table)
            if named is None or named.metadata != published.metadata:
                continue
            for prefix in dict.fromkeys([release.docs, *release.docs_by_project().values()]):
                if (found := project(prefix) if prefix else None) is None:
                    continue
                for uid in found.nodes_of(published.unique_id, published.table):
                    described = found.descriptions(uid)
                    if own.metadata(published.table, published.version, described.hash) == published.metadata:
                        return described, run
        return NONE, run

    return describe
