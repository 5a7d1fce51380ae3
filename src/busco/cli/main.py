"""The entry point of the `busco` command: runs its verbs, and turns errors into messages and exit statuses."""

from __future__ import annotations

import atexit
import errno
import gc
import importlib
import os
import re
import sys
from contextlib import suppress
from typing import Any, NoReturn

import click

from busco import __version__
from busco.environments import Side, code_version, hand_over, here
from busco.errors import BuscoError
from busco.settings import get_settings, require_project
from busco.text import guard

# Each verb: the module that implements it, the environment that it needs (None: either), and its help text.
VERBS: dict[str, tuple[str, Side | None, str]] = {
    "demo": ("platform", "airflow", "run the whole pipeline once: files, Airflow, models, tests, release, Athena"),
    "ui": ("platform", "airflow", "start whatever isn't running, and print the URLs"),
    "down": ("platform", "airflow", "stop everything that is running here"),
    "aws": ("local_aws", "dbt", "manage the local AWS: up, down, status, env"),
    "airflow": ("platform", "airflow", "manage the embedded Airflow: up, down, status"),
    "sample": ("data", "dbt", "generate the files of a sample marketplace"),
    "put": ("data", "dbt", "upload files to the landing bucket, and wait until their rows are published"),
    "ingest": ("data", "dbt", "load source files into bronze"),
    "dbt": ("data", "dbt", "run dbt on the lake: build, parse, ls, docs, …"),
    "query": ("data", "dbt", "query the lake with Athena or DuckDB"),
    "export": ("export", "dbt", "export a release for other tools: duckdb"),
    "docs": ("docs", "dbt", "read the pages about the tables: open, catalog"),
    "events": ("events", "airflow", "process new objects in the landing bucket: status, pause, resume, reconcile, …"),
    "metrics": ("metrics", "airflow", "measure the platform for CloudWatch: serve, show"),
    "run": ("runs", None, "show the runs in the lake, and what happened in one: list, show"),
    "release": ("releases", None, "manage what readers see: show, list, rollback, resume, repair"),
    "scrub": ("scrub", "dbt", "remove personal data from existing metadata"),
    "replay": ("replay", "dbt", "rebuild models of a run on this machine, with the run's inputs"),
    "doctor": ("doctor", None, "check that the platform has what it needs, and suggest fixes"),
    "runner": ("data", "dbt", "carry out an order as one of a run's runners (started by Airflow)"),
    "select": ("data", "dbt", "print the nodes that a dbt selection matches, as JSON"),
    "bake": ("data", "dbt", "parse the projects for an image (Dockerfile.dbt)"),
}
_HIDDEN = frozenset({"runner", "select", "bake"})
# Imports and dbt's manifest create hundreds of thousands of long-lived objects. With Python's default thresholds, the
# garbage collector's passes over them, including the last one at exit, take a quarter of the CPU time of a one-model
# runner.
_COLLECT_AFTER = (100_000, 50, 100)


class Verbs(click.Group):
    """The group of verbs. A verb's module is imported only when the verb runs: `busco --help` does not import boto3."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return [name for name in VERBS if name not in _HIDDEN]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in VERBS:
            return None
        module, side, _ = VERBS[cmd_name]
        require_project(get_settings())
        if side is not None and not here(side):
            hand_over(get_settings(), side, sys.argv[1:])
        found: click.Command = getattr(importlib.import_module(f"busco.cli.{module}"), f"{cmd_name}_command")
        return found

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise _ReaderGone from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in VERBS.items() if name not in _HIDDEN])


def _say_version(ctx: click.Context, _: click.Parameter, asked: bool) -> None:
    """Prints the version, and the commit of the code if it is known."""
    if not asked or ctx.resilient_parsing:
        return
    commit = ""
    # print the version even if the settings are invalid
    with suppress(BuscoError):
        commit = code_version(get_settings())
    _output().echo(f"busco {__version__}" + (f" (commit {commit})" if commit else ""))
    ctx.exit()


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_say_version,
    help="Show the version and exit.",
)  # fmt: skip
def cli() -> None:
    """The Busco data platform: dbt models on DuckDB over S3 and Iceberg, tested and published together.

    Load files with `busco ingest`, build models in Airflow or with `busco dbt build`, and query what is live with
    `busco query`.
    """


class _ReaderGone(Exception):
    """Replaces BrokenPipeError, which Click treats as a failure, when the reader of a pipe (`| head`) closes it."""


def main(arguments: list[str] | None = None) -> None:
    """Runs the command. Exits with a message and status 1 for an error that the user can fix, 2 for incorrect usage."""
    guard()
    gc.set_threshold(*_COLLECT_AFTER)
    atexit.register(gc.freeze)
    try:
        status: Any = cli.main(args=arguments, prog_name="busco", standalone_mode=False)
        _flush()
    except click.UsageError as error:
        _output().say_wrong(error)
        sys.exit(2)
    except click.ClickException as error:
        _output().say_wrong(error)
        sys.exit(error.exit_code)
    except BuscoError as error:
        _fail(error)
    except (click.Abort, KeyboardInterrupt):
        _output().say("busco: interrupted")
        sys.exit(130)
    except _ReaderGone:
        _close_output()
        sys.exit(141)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _close_output()
        _fail(BuscoError(f"cannot write: {error.strerror}", "free up space, or write elsewhere"))
    except Exception as error:
        unreachable = _unreachable(error)
        if unreachable is None:
            raise
        _fail(unreachable)
    sys.exit(status if isinstance(status, int) else 0)


def _fail(error: BuscoError) -> NoReturn:
    _output().say(f"busco: {error}")
    sys.exit(1)


def _output() -> Any:
    """Returns the output module, imported only when something is printed: the import takes a tenth of a second."""
    from busco import output

    return output


def _flush() -> None:
    """Writes the remaining output now: an error while Python writes it at exit could no longer be reported."""
    try:
        sys.stdout.flush()
    except BrokenPipeError as error:
        raise _ReaderGone from error


def _close_output() -> None:
    """Discards the remaining output, because Python would try to write it at exit and fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _unreachable(error: Exception) -> BuscoError | None:
    """Converts a botocore or DuckDB error about an unreachable endpoint; returns None for any other error."""
    from botocore.exceptions import ConnectionClosedError, ConnectTimeoutError, EndpointConnectionError

    from busco.cli.releases import unreachable

    if isinstance(error, ConnectionClosedError | ConnectTimeoutError | EndpointConnectionError):
        return unreachable(get_settings(), str(error.kwargs.get("endpoint_url", "its endpoint")))
    # DuckDB is not installed in every environment, so its errors can be recognized only by their text
    lost = re.match(r"IO Error: Could not (?:connect to server|establish connection) .* '(\S+)'", str(error))
    return unreachable(get_settings(), lost.group(1)) if lost else None
