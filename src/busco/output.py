"""How the command prints: tables that fit a terminal, and whole values where there is none."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text


def console() -> Console:
    """Standard output; wide enough for whole values where it is no terminal."""
    return Console(width=None if sys.stdout.isatty() else 240, highlight=False)


def table(headers: Sequence[str], rows: Iterable[Sequence[Any]], right: Sequence[int] = (), title: str = "") -> None:
    """Prints a table; columns whose positions are in `right` are aligned right."""
    made = Table(title=title or None, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for position, header in enumerate(headers):
        made.add_column(header, justify="right" if position in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*(Text("" if value is None else str(value)) for value in row))
    console().print(made)


def result(columns: Sequence[str], rows: Sequence[Sequence[Any]], form: str) -> None:
    """Prints a query's result as table, csv or json; NULL is empty in the first two, null in json."""
    if form == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(["" if value is None else value for value in row] for row in rows)
    elif form == "json":
        click.echo(json.dumps([dict(zip(columns, row, strict=True)) for row in rows], default=str, ensure_ascii=False))
    else:
        table(columns, rows)
        click.echo(f"{len(rows)} row{'' if len(rows) == 1 else 's'}")


def say(text: str) -> None:
    """A line of progress, on standard error, so that standard output stays the command's result."""
    click.echo(text, err=True)
