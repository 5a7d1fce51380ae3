"""`busco export`: releases for other tools."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from busco.cli.releases import asked
from busco.lake.export import export, opening
from busco.output import echo, progress
from busco.settings import get_settings
from busco.text import count, printable


@click.group("export")
def export_command() -> None:
    """Export a release for other tools."""


@export_command.command("duckdb")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--release", "release_id", help="export this release instead of the live one")
def export_duckdb_command(file: Path, release_id: str | None) -> None:
    """Write a DuckDB file with a view of each table: busco export duckdb lake.duckdb.

    The views read the lake's files: no data is copied, and whoever opens the file needs credentials that can read the
    lake bucket (the policy ReadersPolicy). It always shows the same release; export again to get a newer one. The table
    busco.release names the release, and busco.tables lists the tables. An earlier export at the same path is replaced.
    """
    store, live, release = asked(release_id)
    settings = get_settings()
    with progress("exporting") as bar:
        task = bar.add_task("", total=len(release.tables))
        is_live = release.release == live.release.release
        number = export(settings, store, release, file, lambda done: bar.advance(task, done), is_live)
    name = printable(str(file))
    echo(f"{name}: release {release.release}, {count(number, 'table')}")
    echo(f"open it: duckdb -cmd {shlex.quote(opening(settings))} {shlex.quote(name)}")
