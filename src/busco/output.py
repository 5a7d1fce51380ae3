"""How the command prints: tables that fit a terminal, and whole values where there is none."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from busco.errors import BuscoError

# no line of a table is folded before it has so many characters
_UNFOLDED = 10_000_000


class _Console(Console):
    """Rich's console, which ends the process by itself when the reader of a pipe is gone; the command does that."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def console() -> Console:
    """Standard output; a row is a line where it is no terminal."""
    return _Console(width=None if sys.stdout.isatty() else _UNFOLDED, highlight=False)


def table(headers: Sequence[str], rows: Iterable[Sequence[Any]], right: Sequence[int] = (), title: str = "") -> None:
    """Prints a table; columns whose positions are in `right` are aligned right."""
    made = Table(title=title or None, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for position, header in enumerate(headers):
        made.add_column(Text(header), justify="right" if position in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*(Text("" if value is None else _text(value)) for value in row))
    console().print(made)


def result(columns: Sequence[str], rows: Sequence[Sequence[Any]], form: str) -> None:
    """Prints a query's result as table, csv or json; NULL is empty in the first two, null in json.

    In json a decimal is a string, for a number there is a double to most that read it; so are dates and times. What
    JSON has no number for (NaN, infinity) is null.

    Raises:
        BuscoError: json is asked for, and two columns have one name.
    """
    if form == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(["" if value is None else _text(value) for value in row] for row in rows)
    elif form == "json":
        twice = [name for name, count in Counter(columns).items() if count > 1]
        if twice:
            raise BuscoError(
                f"two columns are called {twice[0]!r}, which json can't tell apart", "name one: … as other"
            )
        found = [{name: _json(value) for name, value in zip(columns, row, strict=True)} for row in rows]
        click.echo(json.dumps(found, ensure_ascii=False, allow_nan=False))
    else:
        table(columns, rows)
        click.echo(f"{len(rows)} row{'' if len(rows) == 1 else 's'}")


def printable(text: str) -> str:
    """A file's name in one line: control characters, and what is no character at all, as escapes."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def say(text: str) -> None:
    """A line of progress, on standard error, so that standard output stays the command's result."""
    click.echo(text, err=True)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    # Athena's way to write VARBINARY
    return value.hex(" ") if isinstance(value, bytes) else str(value)


def _json(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, Mapping):
        return {str(key): _json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_json(inner) for inner in value]
    return _text(value)
