"""`busco aws`: the local AWS."""

from __future__ import annotations

import click

from busco.cli.releases import lake as opened
from busco.cli.releases import show_glue
from busco.embedded import aws
from busco.output import say
from busco.settings import get_settings


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

    def after_start() -> None:
        get_settings.cache_clear()
        shown = show_glue(*opened())
        if shown is not None:
            say(f"Glue shows release {shown.release}")

    click.echo(aws.up(get_settings(), say, lake=lake, after_start=after_start, docker=docker))


@aws_command.command("down")
def aws_down() -> None:
    """Ends it; what is in its S3 stays."""
    aws.down(get_settings(), say)


@aws_command.command("status")
def aws_status() -> None:
    """Whether it runs, and where."""
    for name, state in aws.status(get_settings()):
        click.echo(f"{name}: {state}")


@aws_command.command("env")
def aws_env() -> None:
    """Variables that point aws, boto3 or a notebook at it: eval "$(busco aws env)"."""
    click.echo(aws.env_lines(get_settings()))
