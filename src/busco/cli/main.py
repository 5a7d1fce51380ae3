"""The command's entry: verbs, and how each ends."""

from __future__ import annotations

import atexit
import errno
import gc
import importlib
import os
import re
import sys
from typing import Any, NoReturn

import click

from busco import __version__
from busco.environments import Side, hand_over, here
from busco.errors import BuscoError
from busco.settings import get_settings, require_project
from busco.text import guard

# Each verb: the module that has it, the environment that it needs (None: either), and its line of help.
VERBS: dict[str, tuple[str, Side | None, str]] = {
    "demo": ("platform", "airflow", "the main job: files, Airflow, models, tests, release, Athena"),
    "ui": ("platform", "airflow", "start what isn't running, and print where to look"),
    "down": ("platform", "airflow", "end everything that runs here"),
    "aws": ("local_aws", "dbt", "the local AWS: up, down, status, env"),
    "airflow": ("platform", "airflow", "the embedded Airflow: up, down, status"),
    "sample": ("data", "dbt", "write a made-up marketplace's files"),
    "ingest": ("data", "dbt", "source files into bronze"),
    "dbt": ("data", "dbt", "dbt on the lake: build, parse, ls, docs, …"),
    "query": ("data", "dbt", "a query by Athena or DuckDB"),
    "run": ("runs", None, "the runs in the lake, and what happened in one: list, show"),
    "release": ("releases", None, "what readers see: show, list, rollback, resume"),
    "scrub": ("scrub", "dbt", "take personal data out of metadata that was written earlier"),
    "replay": ("replay", "dbt", "models of a run again on this machine, as they were there"),
    "doctor": ("doctor", None, "whether what the platform needs is there, and what to mend"),
    "runner": ("data", "dbt", "one runner of a run (started by Airflow)"),
    "select": ("data", "dbt", "the nodes that a dbt selection names, as JSON"),
    "bake": ("data", "dbt", "the project's parse, for an image that has it (Dockerfile.dbt)"),
}
_HIDDEN = frozenset({"runner", "select", "bake"})
# What imports and dbt's manifest make is hundreds of thousands of objects that stay: with Python's own thresholds the
# collector's passes over them, and the last one at the end, are a quarter of the processor time of a one-model runner.
_COLLECT_AFTER = (100_000, 50, 100)


class Verbs(click.Group):
    """The verbs, each imported only when it is called: `busco --help` imports no boto3."""

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


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="busco")
def cli() -> None:
    """The Busco data platform: dbt models on DuckDB over S3 and Iceberg, tested and published together.

    Files go in with `busco ingest`, models are built by Airflow or `busco dbt build`, and what is live is asked with
    `busco query`.
    """


class _ReaderGone(Exception):
    """A pipe's reader (`| head`) has seen enough. Click takes the system's own error for a failure."""


def main(arguments: list[str] | None = None) -> None:
    """Runs the command: exit status 1 with one message for what the user can mend, 2 for wrong usage."""
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
        _fail(BuscoError(f"cannot write: {error.strerror}", "make room, or write elsewhere"))
    except Exception as error:
        told = _unreachable(error)
        if told is None:
            raise
        _fail(told)
    sys.exit(status if isinstance(status, int) else 0)


def _fail(error: BuscoError) -> NoReturn:
    _output().say(f"busco: {error}")
    sys.exit(1)


def _output() -> Any:
    """What prints, imported where something is printed: it costs a tenth of a second."""
    from busco import output

    return output


def _flush() -> None:
    """What is still to be written fails here rather than after the end, where nobody could tell of it."""
    try:
        sys.stdout.flush()
    except BrokenPipeError as error:
        raise _ReaderGone from error


def _close_output() -> None:
    """Python writes what is left when it ends, and would fail once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _unreachable(error: Exception) -> BuscoError | None:
    """botocore's or DuckDB's word that an endpoint does not answer, as ours; None for anything else."""
    from botocore.exceptions import ConnectionClosedError, ConnectTimeoutError, EndpointConnectionError

    from busco.cli.releases import unreachable

    if isinstance(error, ConnectionClosedError | ConnectTimeoutError | EndpointConnectionError):
        return unreachable(get_settings(), str(error.kwargs.get("endpoint_url", "its endpoint")))
    # DuckDB is not in every environment, and this is the only mark of it
    lost = re.match(r"IO Error: Could not (?:connect to server|establish connection) .* '(\S+)'", str(error))
    return unreachable(get_settings(), lost.group(1)) if lost else None
