"""`busco scrub`: personal data out of metadata that was written earlier."""

from __future__ import annotations

import click

from busco.cli.releases import lake
from busco.lake.records import Version
from busco.lake.scrub import scrub
from busco.output import echo
from busco.projects import all_contracts
from busco.warehouse.dbt import ensure_manifests
from busco.warehouse.personal import of_version


@click.command("scrub")
@click.option("--dry-run", is_flag=True, help="Only list the objects that have such values.")
def scrub_command(dry_run: bool) -> None:
    """Takes smallest and largest values of personal columns out of delivery records and Iceberg manifests.

    They were written before the columns were marked `meta: {pii: true}`, or by an earlier version of the platform. Run
    everything and publish it first, so that the live release has its tables without them; of versions that are not live
    all bounds are taken. Needs the right to overwrite and delete below `_lake/`, earlier versions of objects included.
    """
    settings, store, _ = lake()
    projects = ensure_manifests(settings)

    def personal(version: Version) -> frozenset[str]:
        for project in projects:
            if version.project in ("", project.identity) and (
                version.unique_id in project.nodes or version.unique_id in project.sources
            ):
                return of_version(project, version) | project.pii(version.unique_id)
        return frozenset(column.name for column in version.columns)

    done = scrub(store, all_contracts(projects), personal, dry_run)
    for key in (*done.with_values, *done.with_bounds):
        echo(store.url(key))
    word = "have" if dry_run else "had"
    echo(
        f"{len(done.with_values)} of {done.deliveries} delivery records and {len(done.with_bounds)} of {done.versions} "
        f"versions of tables {word} bounds to be taken out"
    )
