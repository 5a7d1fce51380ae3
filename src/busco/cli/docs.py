"""`busco docs`: the pages about the tables, without Airflow."""

from __future__ import annotations

import json
import re
import webbrowser
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import click

from busco.cli.releases import asked
from busco.errors import BuscoError
from busco.lake.layout import EnvironmentLayout
from busco.output import echo, progress
from busco.settings import get_settings
from busco.site import page
from busco.site.offline import gather
from busco.site.release import Site
from busco.text import count, printable
from busco.warehouse.dbt import replace_file

_TABLE = re.compile(r"[^./]+[./][^./].*")


@click.group("docs")
def docs_command() -> None:
    """Read the pages about the lake's tables: what they contain, how fresh they are, and how to query them."""


@docs_command.command("open")
@click.argument("table", default="")
@click.option("--release", "release_id", help="show this release instead of the live one")
@click.option("--file", type=click.Path(path_type=Path, dir_okay=False), help="write the page to this file")
@click.option("--no-browser", is_flag=True, help="only write the file, and print its path")
def open_command(table: str, release_id: str | None, file: Path | None, no_browser: bool) -> None:
    """Write the pages to a single file and open it in the browser: busco docs open gold.fct_orders.

    The file works without a network and shows one release; run the command again after the next one. While Airflow is
    running, the same pages are at /catalog/ on its address, where they are always up to date.
    """
    if table and not _TABLE.fullmatch(table):
        raise BuscoError(f"{printable(table)} is not a table's name", "write it as in gold.fct_orders")
    site, shown = _site(release_id)
    state = site.state(shown)
    if table and state is not None and (name := table.replace("/", ".", 1)) not in state["tables"]:
        raise BuscoError(f"release {shown} has no table {printable(name)}", "see the tables: busco docs open")
    with progress("reading") as bar:

        def started(total: int) -> Callable[[int], None]:
            task = bar.add_task("", total=total)
            return lambda done: bar.advance(task, done)

        data = gather(site, shown, started)
    target = file or get_settings().state / "docs.html"
    try:
        # only for its owner, because it contains rows
        replace_file(target.absolute(), page.frame_html(data).encode(), 0o600)
    except OSError as error:
        raise BuscoError(f"{target} can't be written: {error.strerror}") from error
    address = target.absolute().as_uri()
    if table:
        address += f"#/{quote(table.replace('.', '/', 1))}"
    echo(f"{printable(str(target))}: release {shown}, {count(len(data['state']['tables']), 'table')}")
    if no_browser or file is not None:
        return
    if not webbrowser.open(address):
        echo(f"no browser could be started; open {printable(address)}")


@docs_command.command("catalog")
@click.option("--release", "release_id", help="print this release instead of the live one")
def catalog_command(release_id: str | None) -> None:
    """Print the tables, their columns and their states as JSON, for other tools (docs/catalog.md)."""
    site, shown = _site(release_id)
    echo(json.dumps(site.catalog(shown), indent=2, ensure_ascii=False))


def _site(release_id: str | None) -> tuple[Site, str]:
    """Returns the data of all projects, and the id of the release to be shown.

    Raises:
        BuscoError: there is no such release, or nothing has been published yet.
    """
    store, _, release = asked(release_id)
    environment = EnvironmentLayout(get_settings().environment)
    return Site(store, environment, frozenset(release.docs_by_project())), release.release
