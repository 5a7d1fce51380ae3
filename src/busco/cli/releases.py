"""`busco release`: shows, checks and rolls back what readers see."""

from __future__ import annotations

import os
import pwd
import shlex
import socket
from urllib.parse import urlparse

import click

from busco.aws import client, publisher_client
from busco.catalog import glue
from busco.errors import BuscoError
from busco.lake import releases
from busco.lake.layout import EnvironmentLayout
from busco.lake.objects import ObjectStore
from busco.lake.overwritten import overwritten
from busco.lake.records import Release
from busco.output import echo, table
from busco.settings import LAYERS, Settings, get_settings, require_lake
from busco.text import json_text, printable


def me() -> str:
    """Returns the current user's name in releases: the operating system's user (not LOGNAME or USER) and the host."""
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
    """Returns the lake's store, accessed with the publisher role or, if the caller can't assume it, as the caller."""
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


def show_glue(settings: Settings, store: ObjectStore, environment: EnvironmentLayout) -> glue.Shown | None:
    """Makes Glue show what is live, if anything is; does nothing in environments other than prod.

    Args:
        store: the lake's store, with permission to write the docs page (`publishing`).
    """
    if environment.environment != "prod":
        return None
    return glue.sync(publisher_client("glue", settings, or_own=True), store, environment, settings.database, LAYERS)


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
        echo(json_text(release.model_dump(mode="json"), indent=2))
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
    """List the releases that were live, newest first."""
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
@click.option("--start/--no-start", default=True, help="start a new run in Airflow, if it is running")
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
            echo(f"the last hold was set by {by}; skipped in the meantime: {skipped}")
        return
    by = printable(f"{hold.who} ({hold.reason})")
    echo(f"the hold by {by} has ended; skipped in the meantime: {', '.join(hold.skipped) or 'none'}")
    if not start:
        return
    from busco.cli.platform import start_run

    started = start_run(settings)
    echo(f"started the run {started}" if started else "Airflow is not running; build with: busco dbt build --publish")


@release_command.command("check")
@click.argument("release_id", required=False)
def check(release_id: str | None) -> None:
    """Compare the data files of the live release, or of the given one, with what S3 reported when they were written.

    Prints each file that was overwritten or deleted, and how to restore it; exits with status 1 if there are any.
    """
    store, _, release = asked(release_id)
    versions = [version for _, version in sorted(release.tables.items())]
    bad = overwritten(store, versions)
    for one in bad:
        echo(f"{one.table}: {store.url(one.file.key)} {'was overwritten' if one.etag else 'was deleted'}")
        if not one.kept:
            echo("  S3 no longer has a version with the original content: rebuild the table")
        for newer in one.newer if one.kept else ():
            echo(
                f"  aws s3api delete-object --bucket {store.bucket} --key {shlex.quote(one.file.key)} "
                f"--version-id {newer}"
            )
    files = sum(len(version.files) for version in versions)
    if bad:
        raise BuscoError(
            f"{len(bad)} of {files} data files of {release.release} have changed since they were written",
            "an administrator can restore them: docs/operating.md, An overwritten data file",
        )
    echo(f"{release.release}: all {files} data files are unchanged")


def _summary(release: Release) -> str:
    if release.kind == "rollback":
        return f"rollback to {release.rolled_back_to}: {release.reason}"
    dropped = f", dropped {', '.join(release.dropped)}" if release.dropped else ""
    return f"{len(release.tables)} tables, {len(release.built)} built by {release.run}{dropped}"
