"""`busco export`: releases for other tools."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from busco.cli.releases import lake, named
from busco.errors import BuscoError
from busco.lake import releases
from busco.lake.export import export, opening
from busco.output import console, echo
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
    if release_id is not None:
        named(release_id)
    settings, store, environment = lake()
    live = releases.read_live(store, environment)
    if live is None:
        raise BuscoError("nothing is published yet", "run: make demo, or: busco dbt build --publish")
    release = releases.resolve(store, environment, release_id) if release_id else live.release
    columns = TextColumn("exporting"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console(), transient=True, disable=not sys.stdout.isatty()) as bar:
        task = bar.add_task("", total=len(release.tables))
        is_live = release.release == live.release.release
        number = export(settings, store, release, file, lambda done: bar.advance(task, done), is_live)
    name = printable(str(file))
    echo(f"{name}: release {release.release}, {count(number, 'table')}")
    echo(f"open it: duckdb -cmd {shlex.quote(opening(settings))} {shlex.quote(name)}")
