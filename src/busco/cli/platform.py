"""`busco demo`, `ui`, `down`, `airflow`: the embedded platform as a whole."""

from __future__ import annotations

import click

from busco.embedded import airflow, aws
from busco.embedded.demo import run_demo, start_lakehouse
from busco.environments import hand_over
from busco.orchestration.access import KNOWN_PASSWORDS, development_admin
from busco.output import echo, say
from busco.settings import Settings, get_settings


@click.group("airflow")
def airflow_command() -> None:
    """The embedded Airflow, on a PostgreSQL of its own."""


@airflow_command.command("up")
def airflow_up() -> None:
    """Starts what isn't running: PostgreSQL, scheduler, triggerer, webserver (admin/admin)."""
    echo(airflow.up(get_settings(), say))


@airflow_command.command("down")
def airflow_down() -> None:
    """Ends all of it; its database stays."""
    airflow.down(get_settings(), say)


@airflow_command.command("status")
def airflow_status() -> None:
    """What of it runs."""
    for name, state in airflow.status(get_settings()):
        echo(f"{name}: {state}")


@click.command("ui")
def ui_command() -> None:
    """Starts what isn't running and prints where to look."""
    from busco.embedded.demo import start_platform

    settings = get_settings()
    url = start_platform(settings, say, lake=None)
    name, password = development_admin()
    shown = password if password in KNOWN_PASSWORDS else "as AIRFLOW_ADMIN_PASSWORD says"
    echo(f"Airflow   {url}   ({name} / {shown})")
    echo(f'local AWS {dict(aws.status(get_settings())).get("endpoint", "")}   eval "$(.venv/bin/busco aws env)"')


@click.command("down")
def down_command() -> None:
    """Ends everything that runs here; data and history stay."""
    settings = get_settings()
    airflow.down(settings, say)
    # dbt's environment has what ends containers
    hand_over(settings, "dbt", ["aws", "down"])


@click.command("demo")
@click.option("--data", help="a folder in the sources' schema instead of made-up files")
@click.option("--orders", default=100_000, show_default=True, type=click.IntRange(min=1), help="orders to make up")
def demo_command(data: str | None, orders: int) -> int:
    """The main job from end to end: files, Airflow, models, tests, release, Athena."""
    return run_demo(get_settings(), data, orders, say)


def start_run(settings: Settings) -> str | None:
    """Starts a run of the DAG `lakehouse`; None where Airflow doesn't run here."""
    return start_lakehouse(settings)
