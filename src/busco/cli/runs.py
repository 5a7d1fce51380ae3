"""`busco run`: shows the runs in the lake, and what happened in one of them."""

from __future__ import annotations

from dataclasses import asdict

import click

from busco.cli.releases import lake
from busco.lake import replays, story
from busco.lake.records import Pin, utc_now
from busco.lake.run_summaries import summaries
from busco.output import echo, table
from busco.text import json_text, printable


@click.group("run")
def run_command() -> None:
    """List the runs in the lake, or show what happened in one of them, according to its records."""


@run_command.command("list")
@click.option("-n", "most", default=20, show_default=True, type=click.IntRange(min=1), help="maximum number of runs")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
def list_runs(most: int, form: str) -> None:
    """List the runs in this environment, the most recently pinned first."""
    _, store, environment = lake()
    found = summaries(store, environment)[:most]
    if form == "json":
        echo(json_text([{**_pin(one.pin), "status": one.status} for one in found], indent=2))
        return
    rows = [
        (
            one.pin.run,
            one.pin.epoch,
            f"{one.pin.created_at:%Y-%m-%d %H:%M:%S}",
            one.pin.select or "everything",
            one.status,
        )
        for one in found
    ]
    table(("run", "epoch", "pinned (UTC)", "selection", "status"), rows, right=(1,))
    if not rows:
        echo("no run has been pinned in this environment; trigger the lakehouse DAG, or run: busco dbt build --publish")


@run_command.command("show")
@click.argument("run_name", metavar="RUN")
@click.option("--epoch", type=click.IntRange(min=1), help="the epoch to show; default: the newest")
@click.option("--all", "everything", is_flag=True, help="print a line for every node, including those that succeeded")
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
def show(run_name: str, epoch: int | None, everything: bool, form: str) -> None:
    """Show what happened in a run: why runners started, the results, how runners ended, and what it is waiting for.

    RUN is the run's key, Airflow's <DAG>/<run id>, or a unique part of either. Each record is shown with the time (UTC)
    at which S3 stored it.
    """
    _, store, environment = lake()
    run = replays.find(store, environment, run_name)
    found = story.read_story(store, environment, run.name, epoch, utc_now())
    if form == "json":
        as_json = [{**asdict(event), "at": event.at.isoformat()} for event in found.events]
        echo(json_text({**_pin(found.pin), "epochs": found.epochs, "events": as_json, "now": found.now}, indent=2))
        return
    pin = found.pin
    others = [str(number) for number in found.epochs if number != pin.epoch]
    more = f" (other epochs: {', '.join(others)})" if others else ""
    echo(printable(f"{pin.run}, epoch {pin.epoch}{more}, environment {pin.environment}"))
    code = f", code {pin.code_version}" if pin.code_version else ""
    echo(printable(f"dbt project {pin.project or 'unknown'}{code}"))
    echo("")
    events = found.events if everything else story.shortened(found.events)
    day = ""
    for event in events:
        if f"{event.at:%Y-%m-%d}" != day:
            day = f"{event.at:%Y-%m-%d}"
            echo(f"{day} (UTC)")
        echo(f"  {event.at:%H:%M:%S}  {'FAILED  ' if event.failed else ''}{printable(event.text)}")
    echo("")
    echo("now:")
    for line in found.now:
        echo(f"  {printable(line)}")


def _pin(pin: Pin) -> dict[str, object]:
    """Returns the fields that describe a run in JSON output."""
    return {
        "run": pin.run,
        "epoch": pin.epoch,
        "environment": pin.environment,
        "pinned_at": pin.created_at.isoformat(),
        "base": pin.base,
        "project": pin.project,
        "select": pin.select,
        "code_version": pin.code_version,
    }
