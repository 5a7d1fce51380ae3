"""How the command prints: tables that fit a terminal, and whole values where there is none.

All that it prints goes through here, escaped as `busco.text` says.
"""

from __future__ import annotations

import csv
import io
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
from busco.text import json_text, printable, shown

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
    made = Table(title=printable(title) or None, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for position, header in enumerate(headers):
        made.add_column(Text(printable(header)), justify="right" if position in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*(Text("" if value is None else printable(_text(value))) for value in row))
    console().print(made)


def result(columns: Sequence[str], rows: Sequence[Sequence[Any]], form: str) -> None:
    """Prints a query's result as table, csv or json; NULL is empty in the first two, null in json.

    csv and json are data: exactly the values. In csv they are escaped as in a table where they go to a terminal, and
    nowhere else; json has escapes of its own.

    In json a decimal is a string, for a number there is a double to most that read it; so are dates and times. What
    JSON has no number for (NaN, infinity) is null.

    Raises:
        BuscoError: json is asked for, and two columns have one name.
    """
    if form == "csv":
        shows = printable if sys.stdout.isatty() else str
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow([shows(name) for name in columns])
        writer.writerows(["" if value is None else shows(_text(value)) for value in row] for row in rows)
    elif form == "json":
        twice = [name for name, count in Counter(columns).items() if count > 1]
        if twice:
            raise BuscoError(
                f"two columns are called {twice[0]!r}, which json can't tell apart", "name one: … as other"
            )
        found = [{name: _json(value) for name, value in zip(columns, row, strict=True)} for row in rows]
        echo(json_text(found))
    else:
        table(columns, rows)
        echo(f"{len(rows)} row{'' if len(rows) == 1 else 's'}")


def echo(text: str, err: bool = False) -> None:
    """Lines for people, on standard output or standard error, at once."""
    click.echo(shown(text), err=err)


def say(text: str) -> None:
    """A line of progress, on standard error, so that standard output stays the command's result."""
    echo(text, err=True)


def exact(text: str) -> None:
    """Text that a program has asked for, such as a shell that evaluates it: as it is, but to a terminal."""
    # not by click, which takes out what looks like an escape sequence
    sys.stdout.write(f"{shown(text) if sys.stdout.isatty() else text}\n")
    sys.stdout.flush()


def say_wrong(error: click.ClickException) -> None:
    """Click's message of wrong usage, which quotes what was typed, or what a script has passed on."""
    said = io.StringIO()
    error.show(file=said)
    say(said.getvalue().removesuffix("\n"))


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
