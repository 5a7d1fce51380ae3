"""A file that DuckDB does not take as it stands, gone through row by row: rows go on, what is none is set aside.

DuckDB's own list of rejected lines is no ground to stand on: it counts blank lines as rows, cuts what it quotes, and
takes all that an unclosed quote swallows for one line. So a file with anything wrong in it is read once more here, by
Python's reader of the same dialect, into a file of which every row carries its number.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, TextIO

from busco.ingest.files import Refused

# DuckDB's own limit for a line (read_csv, max_line_size)
MAX_LINE = 2_000_000
# a line's text quoted anew, beside its row's number and reason
MAX_SIFTED_LINE = 2 * MAX_LINE + 1000
# the columns before the file's own
COLUMNS = ("_sifted_row", "_sifted_line", "_sifted_reason")

# Python's limit is for a process and by default 131,072 characters
csv.field_size_limit(2 * MAX_LINE)

_NOT_UTF8 = re.compile("[\udc80-\udcff]")
_SPACED_QUOTE = re.compile(r'(?:^|,) +"')
_PROGRESS_ROWS = 20_000


def sift(path: Path, compressed: bool, columns: int, target: Path, tick: Callable[[], None]) -> None:
    """Writes a file's rows to `target`, a CSV with `COLUMNS` in front; a row that is none has its line there instead.

    Rows are numbered from 1; the header and blank lines are not counted.

    Args:
        columns: how many values a row has.
        tick: called every now and then; what it raises ends the work.

    Raises:
        Refused: line endings are mixed, a line is too long, or a quote is never closed and took other rows with it.
    """
    with path.open("rb") as raw, target.open("w", newline="", encoding="utf-8") as out:
        stream: BinaryIO = gzip.GzipFile(fileobj=raw) if compressed else raw  # type: ignore[assignment]
        # newline='' keeps each line's own ending; bytes that are no UTF-8 come through as lone surrogates
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
        writer = csv.writer(out, quoting=csv.QUOTE_ALL, lineterminator="\n")
        writer.writerow([*COLUMNS, *range(columns)])
        for row, line, reason, values in _rows(text, columns):
            if row % _PROGRESS_ROWS == 0:
                tick()
            writer.writerow([row, line, reason, *(values or [""] * columns)])


class _Lines:
    """The file's physical lines for the reader, and those that the row at hand has taken so far."""

    def __init__(self, text: TextIO) -> None:
        self.text, self.row, self.ending = text, 0, ""
        self.taken: list[str] = []
        self._size = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self.text.readline(MAX_LINE + 1)
        if not line:
            raise StopIteration
        self.taken.append(line)
        self._size += len(line) if line.isascii() else len(_encoded(line))
        if self._size > MAX_LINE:
            if len(self.taken) > 1:
                raise Refused(_never_closed(self.row))
            raise Refused(f"row {self.row} is longer than {MAX_LINE:,} bytes")
        return line

    def begin(self, row: int) -> None:
        self.row, self._size = row, 0
        self.taken.clear()

    def end(self) -> None:
        """Raises `Refused` if the row ends otherwise than those before."""
        line = self.taken[-1]
        ending = line[len(line.rstrip("\r\n")) :] if line[-1] in "\r\n" else ""
        # a carriage return alone ends a line, so that more than one character can only be \r\n
        self.ending = self.ending or ending
        if ending and ending != self.ending:
            raise Refused("line endings are mixed; make them all LF or CRLF")


def _rows(text: TextIO, columns: int) -> Iterator[tuple[int, str, str, list[str] | None]]:
    """Each row's number, then its values, or its line and why it is no row."""
    lines = _Lines(text)
    reader = csv.reader(lines, strict=True)
    row = -1  # the header becomes row 0
    while True:
        lines.begin(row + 1)
        values: list[str] = []
        try:
            values = next(reader)
            problem = _problem(values, columns, lines.taken)
        except StopIteration:
            return
        except csv.Error as error:
            problem = "a quote is never closed" if "end of data" in str(error) else "text after a closing quote"
            if len(lines.taken) > 1 and "end of data" in str(error):
                raise Refused(_never_closed(row + 1)) from None
        lines.end()
        if not values and not problem:
            continue
        row += 1
        if row == 0:
            continue
        if not problem:
            yield row, "", "", values[:columns]
            continue
        if columns > 1 and any(_is_row(line, columns) for line in lines.taken[1:]):
            raise Refused(_never_closed(row))
        yield row, _encoded("".join(lines.taken).rstrip("\r\n")).decode("utf-8", "replace"), problem, None


def _problem(values: list[str], columns: int, taken: list[str]) -> str:
    if not values:
        return ""
    if any(not line.isascii() and _NOT_UTF8.search(line) for line in taken):
        return "not UTF-8"
    # DuckDB takes commas too many at the end of a line
    if len(values) < columns or any(values[columns:]):
        return f"{len(values)} value{'' if len(values) == 1 else 's'} instead of {columns}"
    # where DuckDB leaves spaces before a quote out and Python's reader takes both for text
    if any(value.startswith(" ") and value.lstrip(" ").startswith('"') for value in values) and _SPACED_QUOTE.search(
        "".join(taken)
    ):
        return "a space before a quote"
    return ""


def _is_row(line: str, columns: int) -> bool:
    """Whether a line within a quote is by itself a row: then the quote was meant to end before it."""
    try:
        values = next(csv.reader([line]), [])
    except csv.Error:
        return False
    return len(values) == columns


def _never_closed(row: int) -> str:
    where = f"on row {row}" if row else "in the header"
    return f"a quote opened {where} is never closed"


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
