"""`busco scrub`: removes personal data from existing metadata."""

from __future__ import annotations

import click

from busco.cli.releases import lake
from busco.errors import BuscoError
from busco.lake.objects import ObjectStore
from busco.lake.records import Version
from busco.lake.releases import live_releases
from busco.lake.scrub import live_personal, scrub
from busco.output import echo
from busco.projects import all_contracts
from busco.site.scrub import scrub_pages
from busco.warehouse.dbt import ensure_manifests
from busco.warehouse.site import personal_columns


@click.command("scrub")
@click.option("--dry-run", is_flag=True, help="only list the objects that contain values to remove")
def scrub_command(dry_run: bool) -> None:
    """Remove values of personal columns from delivery records, Iceberg manifests, and the data catalog's files.

    These values (smallest, largest, and in the data catalog also frequent values and sample rows) were written before
    the columns were marked `meta: {pii: true}`, or by an earlier version of the platform. First rebuild and publish
    everything, so that the tables in the live release no longer have such values; versions that are not live lose the
    values of all columns. Requires permission to overwrite and delete objects below `_lake/` and
    `docs/`, including their earlier versions.
    """
    settings, store, _ = lake()
    projects = ensure_manifests(settings)

    def personal(version: Version) -> frozenset[str]:
        """Returns the columns that are personal according to any project that has the table; all if none has it."""
        found = [
            personal_columns(project, unique_id, version)
            for project in projects
            if version.project in ("", project.identity) or version.table.startswith("bronze.")
            for unique_id in project.nodes_of(version.unique_id, version.table)[:1]
        ]
        return frozenset().union(*found) if found else frozenset(column.name for column in version.columns)

    if not dry_run:
        require_publishes(store)
    live = live_personal(store, personal)
    done = scrub(store, all_contracts(projects), live, dry_run)
    pages = scrub_pages(store, live, dry_run)
    for key in (*done.with_values, *done.with_statistics, *done.with_bounds, *pages.with_values):
        echo(store.url(key))
    outcome = "have values to remove" if dry_run else "had values, which were removed"
    echo(
        f"{len(done.with_values)} of {done.deliveries} delivery records, {len(done.with_statistics)} of "
        f"{done.versions} version records, {len(done.with_bounds)} of {done.metadata} metadata files and "
        f"{len(pages.with_values)} of {pages.checked} files of the data catalog {outcome}"
    )
    if unchecked := (*done.unchecked, *pages.unchecked):
        listed = "\n".join(f"    {store.url(key)}" for key in unchecked)
        raise BuscoError(
            f"these objects could not be checked, because they are damaged, name missing objects, or were written by "
            f"another program:\n{listed}",
            "repair them (busco release repair), delete what other programs have written, and scrub again",
        )


def require_publishes(store: ObjectStore) -> None:
    """Refuses a scrub while a release is live that somebody has rolled back to: it can be older than a mark.

    Raises:
        BuscoError: there is such a release.
    """
    for name, release in live_releases(store).items():
        if release.kind == "rollback":
            raise BuscoError(
                f"the live release of the environment {name} is a rollback to {release.rolled_back_to}, whose "
                "tables can be older than the marks of personal columns",
                "run and publish everything, and scrub then",
            )
