"""`busco doctor`: checks that the platform has what it needs."""

from __future__ import annotations

import contextlib
import logging
import sys
from dataclasses import asdict

import click

from busco import __version__
from busco.doctor import CHECKS, examine
from busco.environments import here
from busco.output import echo, table
from busco.settings import get_settings
from busco.text import json_text


@click.command("doctor")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.option("--skip", multiple=True, metavar="CHECK", help="leave out this check; can be given several times")
def doctor_command(form: str, skip: tuple[str, ...]) -> int:
    """Check that this process has what it needs (variables, keys, Airflow's database and broker, S3, SQS, Glue, ECS,
    roles, the image, manifest, clock, memory, disk, DuckDB), and suggest fixes. Exits with status 1 if a check fails.

    Run this command in a dbt container to check the environment in which models run; on ECS, the DAG
    `ecs_check` does this.
    """
    if unknown := sorted(set(skip) - {check.name for check in CHECKS}):
        raise click.BadParameter(f"there is no check {', '.join(unknown)}", param_hint="--skip")
    # hide the INFO messages of the libraries that the checks use
    logging.disable(logging.INFO)
    # dbt prints parse errors to stdout, which must contain only the findings
    with contextlib.redirect_stdout(sys.stderr):
        findings = list(examine(get_settings(), [check for check in CHECKS if check.name not in skip]))
    failed = [finding for finding in findings if finding.state == "failed"]
    if form == "json":
        side = "dbt" if here("dbt") else "airflow"
        checks = [asdict(finding) for finding in findings]
        echo(json_text({"ok": not failed, "version": __version__, "environment": side, "checks": checks}))
    else:
        table(("check", "", "details"), [(one.name, one.state, one.seen) for one in findings])
        for finding in failed:
            echo(f"\n{finding.name} failed: {finding.seen}" + (f"\n  → {finding.fix}" if finding.fix else ""))
        skipped = sum(finding.state == "skipped" for finding in findings)
        good = len(findings) - len(failed) - skipped
        echo(f"\n{good} ok, {len(failed)} failed, {skipped} skipped")
    return 1 if failed else 0
