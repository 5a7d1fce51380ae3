"""`busco release`: shows, repairs and rolls back what readers see."""

from __future__ import annotations

import os
import pwd
import socket
import sys
from contextlib import suppress
from urllib.parse import urlparse

import click

from busco.aws import client, publisher_client
from busco.catalog import glue, repair
from busco.catalog.glue_drift import Catalog
from busco.environments import hand_over, here, python
from busco.errors import BuscoError
from busco.lake import releases
from busco.lake.drift import Finding
from busco.lake.layout import EnvironmentLayout
from busco.lake.objects import ObjectStore
from busco.lake.records import Release
from busco.output import echo, table
from busco.settings import LAYERS, Settings, get_settings, require_lake
from busco.text import count, json_text, printable


def me() -> str:
    """Returns the current user's name as recorded in releases: the operating system's user (regardless of LOGNAME and
    USER) and the host."""
    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container's user may have no name
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"


def lake() -> tuple[Settings, ObjectStore, EnvironmentLayout]:
    """Returns this process's settings, with the lake's store and the environment that they specify.

    Raises:
        BuscoError: no lake is configured, or the local AWS isn't running or isn't responding.
    """
    settings = require_lake(get_settings())
    _require_answer(settings)
    return settings, ObjectStore(client("s3", settings), settings.lake_bucket), EnvironmentLayout(settings.environment)


def publishing(settings: Settings) -> ObjectStore:
    """Returns the lake's store, accessed with the publisher role or, if the caller can't assume it, with the caller's
    own credentials."""
    return ObjectStore(publisher_client("s3", settings, or_own=True), settings.lake_bucket)


def _require_answer(settings: Settings) -> None:
    """Raises an error at once if the local AWS is down: boto3 would retry for a minute."""
    if settings.platform != "embedded" or not settings.endpoint_url:
        return
    url = urlparse(settings.endpoint_url)
    try:
        socket.create_connection((url.hostname or "", url.port or 80), timeout=5).close()
    except OSError as error:
        raise unreachable(settings, settings.endpoint_url) from error


def unreachable(settings: Settings, endpoint: str) -> BuscoError:
    """Returns the error for an AWS endpoint that is not responding."""
    if settings.platform == "embedded":
        return BuscoError(f"the local AWS is not responding at {endpoint}", "start it: busco aws up")
    return BuscoError(f"AWS is not responding at {endpoint}", "check the network and BUSCO_ENDPOINT_URL")


def named(release_id: str) -> str:
    """Checks and returns a release id, which must not be empty: an empty id would be a prefix of every release's id.

    Raises:
        UsageError: the id is empty.
    """
    if not release_id.strip():
        raise click.UsageError("the release id is empty; see: busco release list")
    return release_id


def shown_in(settings: Settings, environment: EnvironmentLayout) -> Catalog | None:
    """Returns the catalog that shows what is live, with the same credentials as `publishing`.

    Returns None for environments other than prod, which no catalog shows.
    """
    if environment.environment != "prod":
        return None
    api = publisher_client("glue", settings, or_own=True, **glue.client_options(settings.glue_calls))
    return Catalog(api, settings.database, LAYERS, settings.glue_calls)


def show_glue(settings: Settings, store: ObjectStore, environment: EnvironmentLayout) -> glue.Shown | None:
    """Makes Glue show what is live, if anything is; does nothing in environments other than prod.

    Args:
        store: the lake's store, with permission to write the docs page (`publishing`).
    """
    catalog = shown_in(settings, environment)
    return catalog.sync(store, environment) if catalog else None


@click.group("release")
def release_command() -> None:
    """Manage what readers see: all tables, each at one version, published together."""


def asked(release_id: str | None) -> tuple[ObjectStore, releases.Live, Release]:
    """Returns the lake's store, what is live in it, and the release with the given id (default: the live one).

    Raises:
        BuscoError: nothing is published yet, or there is no such release.
    """
    checked = None if release_id is None else named(release_id)
    _, store, environment = lake()
    live = releases.read_live(store, environment)
    if live is None:
        raise BuscoError("nothing is published yet", "run: make demo, or: busco dbt build --publish")
    release = releases.resolve(store, environment, checked) if checked else live.release
    return store, live, release


@release_command.command("show")
@click.argument("release_id", required=False)
@click.option("--json", "as_json", is_flag=True, help="print the whole record")
def show(release_id: str | None, as_json: bool) -> None:
    """Show the tables, versions and rows of the live release, or of the given one."""
    _, live, release = asked(release_id)
    if as_json:
        tables = {name: version.model_copy(update={"inline": None}) for name, version in release.tables.items()}
        echo(json_text(release.model_copy(update={"tables": tables}).model_dump(mode="json"), indent=2))
        return
    state = "live" if release.release == live.current.release else "not live"
    echo(printable(f"{release.release} ({state}), {_summary(release)}"))
    if live.current.hold is not None:
        hold = live.current.hold
        echo(f"ON HOLD since {hold.when:%Y-%m-%d %H:%M} UTC by {printable(f'{hold.who}: {hold.reason}')}")
    rows = [
        (name, version.version[:12], f"{version.rows:,}", f"{version.bytes:,}", ", ".join(release.stale.get(name, ())))
        for name, version in sorted(release.tables.items())
    ]
    table(("table", "version", "rows", "bytes", "stale because of"), rows, right=(2, 3))


@release_command.command("list")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.option(
    "-n", "most", default=30, show_default=True, type=click.IntRange(min=1), help="maximum number of releases"
)
def list_releases(form: str, most: int) -> None:
    """List the releases that are or were live, newest first."""
    _, store, environment = lake()
    found: list[Release] = []
    for release in releases.history(store, environment):
        if len(found) == most:
            break
        found.append(release)
    if form == "json":
        echo(json_text([r.model_dump(mode="json", exclude={"tables"}) for r in found], indent=2))
        return
    rows = [(r.release, f"{r.created_at:%Y-%m-%d %H:%M:%S}", _summary(r), r.who) for r in found]
    table(("release", "UTC", "what", "who"), rows)


@release_command.command("rollback")
@click.argument("release_id")
@click.option("--reason", required=True, help="the reason, recorded for others to read")
def rollback(release_id: str, reason: str) -> None:
    """Make an older release's content live again, and put publishing on hold until `resume`."""
    settings, _, environment = lake()
    store = publishing(settings)
    made = releases.rollback(store, environment, named(release_id), me(), reason)
    show_glue(settings, store, environment)
    echo(f"{made.release} is live, with the content of {made.rolled_back_to}")
    echo("publishing is on hold; to end the hold: busco release resume")


@release_command.command("resume")
@click.option("--start/--no-start", default=True, help="start a new run if Airflow is running")
def resume(start: bool) -> None:
    """End the hold, list the runs that were skipped during it, and start a new run."""
    settings, _, environment = lake()
    store = publishing(settings)
    hold = releases.resume(store, environment)
    if hold is None:
        echo("there is no hold; nothing to do")
        live = releases.read_live(store, environment)
        if live is not None and (last := live.current.resumed) is not None:
            skipped = ", ".join(last.hold.skipped) or "none"
            by = printable(f"{last.hold.who} ({last.hold.reason})")
            echo(f"the last hold was set by {by}; runs skipped in the meantime: {skipped}")
        return
    by = printable(f"{hold.who} ({hold.reason})")
    echo(f"the hold set by {by} was lifted; runs skipped in the meantime: {', '.join(hold.skipped) or 'none'}")
    if not start:
        return
    from busco.cli.platform import start_run

    started = start_run(settings)
    echo(f"started the run {started}" if started else "Airflow is not running; build with: busco dbt build --publish")


@release_command.command("repair")
@click.option("--check", "only_check", is_flag=True, help="only compare; change nothing")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
def repair_command(only_check: bool, form: str) -> None:
    """Find what differs from the live release and the older releases that are kept, and repair it.

    Compares Glue with the live release, and all data files, records and Iceberg metadata of these releases with what
    was written. Restores overwritten and deleted objects from the older versions in the bucket, recreates lost
    metadata from the records, and corrects Glue. Exits with status 1 if there are differences or, after a repair, if
    any are left.
    """
    if not only_check:
        _prefer_dbt()
    settings, _, environment = lake()
    store = publishing(settings)

    def say(finding: Finding, done: str) -> None:
        if form == "table":
            echo(f"{finding.lines()[0]}\n  {done}")

    catalog = shown_in(settings, environment)
    if only_check:
        report = repair.check(store, environment, catalog)
    else:
        report = repair.repair(store, environment, catalog, me(), here("dbt"), say)
    if form == "json":
        echo(json_text(report.as_json(), indent=2))
    for finding in report.findings if form == "table" else ():
        echo("\n".join(finding.lines()))
    if report.unknown and form == "table":
        echo(f"tables in the Glue databases that belong to no release (not changed): {', '.join(report.unknown)}")
    if report.findings:
        state = "found" if only_check else "left"
        raise BuscoError(
            f"{count(len(report.findings), 'difference')} {state}",
            "repair them: busco release repair"
            if only_check
            else "for each, follow the advice above; see docs/operating.md, Drift",
        )
    if form == "table":
        echo(report.summary())


def _prefer_dbt() -> None:
    """Continues in dbt's environment if there is one: recreating lost metadata requires its Iceberg library."""
    settings = get_settings()
    with suppress(BuscoError):
        if not here("dbt") and python(settings, "dbt").exists():
            hand_over(settings, "dbt", sys.argv[1:])


def _summary(release: Release) -> str:
    if release.kind == "rollback":
        return f"rollback to {release.rolled_back_to}: {release.reason}"
    dropped = f", dropped {', '.join(release.dropped)}" if release.dropped else ""
    return f"{count(len(release.tables), 'table')}, {len(release.built)} built by {release.run}{dropped}"
