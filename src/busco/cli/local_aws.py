"""`busco aws`: manages the local AWS."""

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
    """Manage the local AWS, a single process on this machine."""


@aws_command.command("up")
@click.option("--lake", help="the local lake to serve; default: the lake that was served last")
@click.option(
    "--docker/--no-docker",
    default=None,
    help="run ECS tasks as containers; default: the previous choice or, the first time, what BUSCO_EXECUTION requires",
)
def aws_up(lake: str | None, docker: bool | None) -> None:
    """Start the local AWS if it isn't running, deploy deploy/aws/, and show the live release in Glue."""
    echo(aws.up(get_settings(), say, lake=lake, after_start=_show_live_release, docker=docker))


@aws_command.command("serve")
def aws_serve() -> None:
    """Run the local AWS in the foreground and keep Airflow's graph up to date, until SIGTERM.

    The local AWS's container runs this command.
    """
    from busco.embedded.serve import serve

    serve(get_settings(), say, _show_live_release)


@aws_command.command("filled")
def aws_filled() -> int:
    """Exit with status 0 if any file has been ingested into the local AWS's lake, otherwise 1."""
    _, store, _ = opened()
    return 0 if next(iter(store.keys("_lake/deliveries/")), None) is not None else 1


@aws_command.command("down")
def aws_down() -> None:
    """Stop the local AWS; its S3 objects are kept."""
    aws.down(get_settings(), say)


@aws_command.command("status")
def aws_status() -> None:
    """Show whether the local AWS is running, and where."""
    for name, state in aws.status(get_settings()):
        echo(f"{name}: {state}")


@aws_command.command("env")
def aws_env() -> None:
    """Print variables that point the AWS CLI, boto3 or a notebook at the local AWS: eval "$(busco aws env)"."""
    exact(aws.env_lines(get_settings()))
