"""`busco demo`, `ui`, `down` and `airflow`, which manage the embedded platform as a whole."""

from __future__ import annotations

import click

from busco.embedded import airflow, aws
from busco.embedded.demo import run_demo, start_lakehouse
from busco.environments import hand_over
from busco.output import echo, say
from busco.settings import Settings, get_settings


@click.group("airflow")
def airflow_command() -> None:
    """Manage the embedded Airflow, which has its own PostgreSQL."""


@airflow_command.command("up")
def airflow_up() -> None:
    """Start whatever isn't running: PostgreSQL, the scheduler, the triggerer, the webserver (admin/admin)."""
    echo(airflow.up(get_settings(), say))


@airflow_command.command("down")
def airflow_down() -> None:
    """Stop Airflow and its PostgreSQL; the database is kept."""
    airflow.down(get_settings(), say)


@airflow_command.command("status")
def airflow_status() -> None:
    """Show which parts of Airflow are running."""
    for name, state in airflow.status(get_settings()):
        echo(f"{name}: {state}")


@click.command("ui")
def ui_command() -> None:
    """Start whatever isn't running, and print the URLs."""
    from busco.embedded.demo import shown_login, start_platform

    settings = get_settings()
    url = start_platform(settings, say, lake=None)
    echo(f"Airflow   {url}   ({shown_login()})")
    echo(f"catalog   {url}/catalog/   (the same login)")
    echo(f'local AWS {dict(aws.status(get_settings())).get("endpoint", "")}   eval "$(.venv/bin/busco aws env)"')


@click.command("down")
def down_command() -> None:
    """Stop everything that is running here; data and history are kept."""
    settings = get_settings()
    airflow.down(settings, say)
    # only dbt's environment has the code that stops containers
    hand_over(settings, "dbt", ["aws", "down"])


@click.command("demo")
@click.option("--data", help="a folder of files in the sources' schema, to use instead of generated data")
@click.option(
    "--orders", default=100_000, show_default=True, type=click.IntRange(min=1), help="number of orders to generate"
)
def demo_command(data: str | None, orders: int) -> int:
    """Run the whole pipeline once: files, Airflow, models, tests, release, Athena."""
    return run_demo(get_settings(), data, orders, say)


def start_run(settings: Settings) -> str | None:
    """Starts a run of the `lakehouse` DAG and returns its id; returns None if Airflow is not running here."""
    return start_lakehouse(settings)
