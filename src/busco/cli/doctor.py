"""`busco doctor`: whether what the platform needs is there."""

from __future__ import annotations

import contextlib
import logging
import sys
from dataclasses import asdict

import click

from busco import __version__
from busco.doctor import examine
from busco.environments import here
from busco.output import echo, table
from busco.settings import get_settings
from busco.text import json_text


@click.command("doctor")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
def doctor_command(form: str) -> int:
    """Looks at what this process needs (variables, keys, Airflow's database and broker, S3, SQS, Glue, ECS, roles, the
    image, manifest, clock, memory, disk, DuckDB), and says what to mend. Ends with status 1 if anything has failed.

    In a dbt container it sees what models will see: the DAG `ecs_check` runs it there.
    """
    # what libraries tell of themselves while they are looked at
    logging.disable(logging.INFO)
    # dbt prints what it can't parse
    with contextlib.redirect_stdout(sys.stderr):
        findings = list(examine(get_settings()))
    failed = [finding for finding in findings if finding.state == "failed"]
    if form == "json":
        side = "dbt" if here("dbt") else "airflow"
        checks = [asdict(finding) for finding in findings]
        echo(json_text({"ok": not failed, "version": __version__, "environment": side, "checks": checks}))
    else:
        table(("check", "", "seen"), [(one.name, one.state, one.seen) for one in findings])
        for finding in failed:
            echo(f"\n{finding.name} failed: {finding.seen}" + (f"\n  → {finding.mend}" if finding.mend else ""))
        skipped = sum(finding.state == "skipped" for finding in findings)
        good = len(findings) - len(failed) - skipped
        echo(f"\n{good} ok, {len(failed)} failed, {skipped} skipped")
    return 1 if failed else 0
