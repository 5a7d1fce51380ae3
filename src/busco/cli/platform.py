"""`busco demo`, `ui`, `down`, `aws`, `airflow`: the embedded platform as a whole."""

from __future__ import annotations

import click

from busco.embedded import airflow, aws
from busco.embedded.demo import run_demo, start_lakehouse
from busco.settings import Settings, get_settings


def say(text: str) -> None:
    """A line of progress, on standard error, so that standard output stays the command's result."""
    click.echo(text, err=True)


@click.group("aws")
def aws_command() -> None:
    """The local AWS, in one process on this machine."""


@aws_command.command("up")
@click.option("--lake", help="which local lake to serve; the last one if not said")
def aws_up(lake: str | None) -> None:
    """Starts it where it isn't running, deploys deploy/aws/, and shows the live release in Glue."""
    from busco.cli.releases import lake as opened
    from busco.cli.releases import show_glue

    def after_start() -> None:
        get_settings.cache_clear()
        shown = show_glue(*opened())
        if shown is not None:
            say(f"Glue shows release {shown.release}")

    click.echo(aws.up(get_settings(), say, lake=lake, after_start=after_start))


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


@click.group("airflow")
def airflow_command() -> None:
    """The embedded Airflow, on a PostgreSQL of its own."""


@airflow_command.command("up")
def airflow_up() -> None:
    """Starts what isn't running: PostgreSQL, scheduler, triggerer, webserver (admin/admin)."""
    click.echo(airflow.up(get_settings(), say))


@airflow_command.command("down")
def airflow_down() -> None:
    """Ends all of it; its database stays."""
    airflow.down(get_settings(), say)


@airflow_command.command("status")
def airflow_status() -> None:
    """What of it runs."""
    for name, state in airflow.status(get_settings()):
        click.echo(f"{name}: {state}")


@click.command("ui")
def ui_command() -> None:
    """Starts what isn't running and prints where to look."""
    from busco.embedded.demo import start_platform

    settings = get_settings()
    url = start_platform(settings, say, lake=None)
    click.echo(f"Airflow   {url}   (admin / admin)")
    click.echo(f"local AWS {dict(aws.status(get_settings())).get('endpoint', '')}   eval \"$(.venv/bin/busco aws env)\"")


@click.command("down")
def down_command() -> None:
    """Ends everything that runs here; data and history stay."""
    settings = get_settings()
    airflow.down(settings, say)
    aws.down(settings, say)


@click.command("demo")
@click.option("--data", help="a folder in the sources' schema instead of made-up files")
@click.option("--orders", default=100_000, show_default=True, type=click.IntRange(min=1), help="orders to make up")
def demo_command(data: str | None, orders: int) -> int:
    """The main job from end to end: files, Airflow, models, tests, release, Athena."""
    return run_demo(get_settings(), data, orders, say)


def start_run(settings: Settings) -> str | None:
    """Starts a run of the DAG `lakehouse`; None where Airflow doesn't run here."""
    return start_lakehouse(settings)


