"""Prints the command's output: tables that fit the terminal, or full values if the output doesn't go to a terminal.

All of the command's output goes through this module, which escapes it with `busco.text`.
"""

from __future__ import annotations

import csv
import io
import math
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from busco.errors import BuscoError
from busco.text import json_text, printable, shown

if TYPE_CHECKING:
    from rich.progress import Progress

# the width of tables that are not written to a terminal: large enough that no line is ever wrapped
_UNFOLDED = 10_000_000


class _Console(Console):
    """A Rich console that lets the command handle a broken pipe, instead of exiting the process."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def console() -> Console:
    """Returns a console for standard output; if that is not a terminal, each row of a table is one line."""
    return _Console(width=None if sys.stdout.isatty() else _UNFOLDED, highlight=False)


def progress(what: str, in_bytes: bool = False) -> Progress:
    """Returns a progress bar that counts things, or bytes; it is shown only on a terminal, and gone at its end."""
    # imported here because most commands show no progress
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn(what),
        BarColumn(),
        DownloadColumn() if in_bytes else MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console(),
        transient=True,
        disable=not sys.stdout.isatty(),
    )


def table(headers: Sequence[str], rows: Iterable[Sequence[Any]], right: Sequence[int] = (), title: str = "") -> None:
    """Prints a table; columns whose positions are in `right` are right-aligned."""
    made = Table(title=printable(title) or None, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for position, header in enumerate(headers):
        made.add_column(Text(printable(header)), justify="right" if position in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*(Text("" if value is None else printable(_text(value))) for value in row))
    console().print(made)


def result(columns: Sequence[str], rows: Sequence[Sequence[Any]], form: str) -> None:
    """Prints a query's result as a table, csv or json (`form`); NULL is empty in a table and in csv, and null in json.

    csv and json are meant for programs and contain the exact values. If csv goes to a terminal, its values are escaped
    as in a table; json has its own escapes.

    In json, decimals are strings, because most programs read JSON numbers as doubles. Dates and times are strings too.
    Values that JSON numbers can't represent (NaN, infinity) are null.

    Raises:
        BuscoError: the form is json, and two columns have the same name.
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
                f"two columns are named {twice[0]!r}, so json can't tell them apart", "rename one: … as other"
            )
        found = [{name: _json(value) for name, value in zip(columns, row, strict=True)} for row in rows]
        echo(json_text(found))
    else:
        table(columns, rows)
        echo(f"{len(rows)} row{'' if len(rows) == 1 else 's'}")


def echo(text: str, err: bool = False) -> None:
    """Prints lines meant for people to standard output or standard error, without buffering."""
    click.echo(shown(text), err=err)


def say(text: str) -> None:
    """Prints a progress message to standard error, so that standard output contains only the command's result."""
    echo(text, err=True)


def exact(text: str) -> None:
    """Prints text for a program, such as a shell that evaluates it. The text is escaped only on a terminal."""
    # not with click, which removes anything that looks like an escape sequence
    sys.stdout.write(f"{shown(text) if sys.stdout.isatty() else text}\n")
    sys.stdout.flush()


def say_wrong(error: click.ClickException) -> None:
    """Prints an error from Click, escaped because it quotes arguments that a user or a script passed."""
    message = io.StringIO()
    error.show(file=message)
    say(message.getvalue().removesuffix("\n"))


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Decimal):
        # str() writes 0.0000000 as 0E-7
        return format(value, "f")
    # Athena's format for VARBINARY
    return value.hex(" ") if isinstance(value, bytes) else str(value)


def _json(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_json(inner) for inner in value]
    return _text(value)
