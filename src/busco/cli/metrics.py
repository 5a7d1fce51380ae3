"""`busco metrics`: measures the platform, and sends the values to CloudWatch."""

from __future__ import annotations

import logging
import sys

import click

from busco.cli.events import health, with_airflow
from busco.output import say, table
from busco.settings import get_settings
from busco.text import printable


@click.group("metrics")
def metrics_command() -> None:
    """Measure the platform for CloudWatch's alarms and dashboard."""


@metrics_command.command("serve")
def serve_command() -> None:
    """Send the metrics to CloudWatch once a minute, until stopped (SIGTERM)."""
    from busco.orchestration.metrics import NAMESPACE, serve
    from busco.orchestration.service_health import Health, idle, stopped

    settings = get_settings()
    if not settings.metrics_platform:
        say("BUSCO_METRICS_PLATFORM is not set: no metrics are sent to CloudWatch")
        idle(settings.state, "metrics")
        return
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("botocore").setLevel(logging.WARNING)
    say(f"sending metrics of {settings.metrics_platform} to the namespace {NAMESPACE}")
    serve(settings, stopped(), Health(settings.state, "metrics"))


@metrics_command.command("show")
def show_command() -> None:
    """Measure once, and print the values; nothing is sent to CloudWatch."""
    from busco.orchestration.metrics import METRICS, measured, parts

    rows, problems = [], []
    for name, part in parts(with_airflow()).items():
        found, problem = measured(name, part)
        problems += [problem] if problem else []
        for metric in found:
            unit, meaning = METRICS[metric.name]
            values = " ".join(f"{value:,.10g}" for value in metric.values)
            rows.append((metric.name, values, unit.lower(), meaning))
    table(("metric", "value", "unit", "what it measures"), rows)
    for problem in problems:
        say(printable(problem))
    if problems:
        raise SystemExit(1)


@metrics_command.command("health")
def health_command() -> None:
    """Exit with status 1, and the reason, if the service on this machine does not measure any more."""
    health("metrics")
