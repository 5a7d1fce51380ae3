"""`busco aws`: the local AWS."""

from __future__ import annotations

import click

from busco.cli.releases import lake as opened
from busco.cli.releases import show_glue
from busco.embedded import aws
from busco.output import echo, exact, say
from busco.settings import get_settings


def _show_live_release() -> None:
    get_settings.cache_clear()
    shown = show_glue(*opened())
    if shown is not None:
        say(f"Glue shows release {shown.release}")


@click.group("aws")
def aws_command() -> None:
    """The local AWS, in one process on this machine."""


@aws_command.command("up")
@click.option("--lake", help="which local lake to serve; the last one if not said")
@click.option(
    "--docker/--no-docker",
    default=None,
    help="whether its ECS runs tasks as containers; if not said, as it was last, at first as BUSCO_EXECUTION needs",
)
def aws_up(lake: str | None, docker: bool | None) -> None:
    """Starts it where it isn't running, deploys deploy/aws/, and shows the live release in Glue."""
    echo(aws.up(get_settings(), say, lake=lake, after_start=_show_live_release, docker=docker))


@aws_command.command("serve")
def aws_serve() -> None:
    """Runs it in the foreground, and keeps Airflow's graph, until SIGTERM: what its container does."""
    from busco.embedded.serve import serve

    serve(get_settings(), say, _show_live_release)


@aws_command.command("ready")
def aws_ready() -> int:
    """Whether `serve` has started all that it has: status 0 or 1, for a container's health check."""
    from busco.embedded.serve import ready

    return 0 if ready(get_settings()) else 1


@aws_command.command("filled")
def aws_filled() -> int:
    """Whether any file was ever ingested into the lake that it serves: status 0 or 1."""
    _, store, _ = opened()
    return 0 if next(iter(store.keys("_lake/deliveries/")), None) is not None else 1


@aws_command.command("down")
def aws_down() -> None:
    """Ends it; what is in its S3 stays."""
    aws.down(get_settings(), say)


@aws_command.command("status")
def aws_status() -> None:
    """Whether it runs, and where."""
    for name, state in aws.status(get_settings()):
        echo(f"{name}: {state}")


@aws_command.command("env")
def aws_env() -> None:
    """Variables that point aws, boto3 or a notebook at it: eval "$(busco aws env)"."""
    exact(aws.env_lines(get_settings()))
