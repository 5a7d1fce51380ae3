"""Reads a file that DuckDB rejected, row by row: keeps the rows that parse, and sets the others aside with a reason.

DuckDB's own list of rejected lines can't be used: it counts blank lines as rows, truncates the lines it quotes, and
treats everything that an unclosed quote swallows as one line. So a file with any error is read again here, with
Python's reader for the same dialect, and rewritten to another file in which every row has its number.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, TextIO

from busco.ingest.files import Content
from busco.ingest.formats import another_encoding
from busco.ingest.refused import Refused

# the columns that precede the file's own columns in the output
COLUMNS = ("_sifted_row", "_sifted_line", "_sifted_reason")

_NOT_UTF8 = re.compile("[\udc80-\udcff]")
_SPACED_QUOTE = re.compile(r'(?:^|,) +"')
# A line with the blank lines after it. Outside of quotes, Python's reader treats a run of line ends as one; within
# quotes, it keeps them. So blank lines cost almost nothing.
_LINES = re.compile(r"[^\r\n]*[\r\n]+|[^\r\n]+")
_BLOCK = 1 << 20
# a row of this many characters is below DuckDB's limit for a line, however many bytes each character has
_LONG = 100_000


def sift(path: Path, content: Content, target: Path, tick: Callable[[], None]) -> int:
    """Writes a file's rows to `target`, a CSV whose first columns are `COLUMNS`.

    These columns contain the row's number and, if the row can't be parsed, its line and the reason; the values of such
    a row are left empty. Rows are numbered from 1; the header and blank lines are not counted.

    Args:
        tick: called regularly; an exception that it raises stops the work.

    Returns:
        The length in bytes of the longest row written, or 0 if all rows are well below DuckDB's limit.

    Raises:
        Refused: line endings are mixed, an unclosed quote swallowed other rows, most rows with non-ASCII characters are
            not UTF-8, or a row is longer than when the file was examined.
    """
    columns = len(content.header)
    longest = 0
    with path.open("rb") as raw, target.open("w", newline="", encoding="utf-8") as out:
        stream: BinaryIO = gzip.GzipFile(fileobj=raw) if content.compressed else raw  # type: ignore[assignment]
        # newline='' keeps each line's own ending; bytes that are not UTF-8 become lone surrogates
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
        writer = csv.writer(out, quoting=csv.QUOTE_ALL, lineterminator="\n")
        writer.writerow([*COLUMNS, *range(columns)])
        encoding = _Encoding()
        for row, line, reason, values in _rows(_Lines(text, content.longest, tick), columns, encoding):
            cells = [line, reason, *(values or [""] * columns)]
            characters = writer.writerow([row, *cells])
            if characters > _LONG:
                longest = max(longest, characters + sum(len(value.encode()) - len(value) for value in cells))
        encoding.check()
    return longest


class _Encoding:
    """Counts the rows with non-ASCII characters, and how many of these are not UTF-8."""

    def __init__(self) -> None:
        self.not_ascii = self.not_utf8 = 0
        self._bytes: set[str] = set()

    def see(self, lines: list[str]) -> bool:
        """Counts a row; returns whether it is UTF-8."""
        others = [line for line in lines if not line.isascii()]
        if not others:
            return True
        self.not_ascii += 1
        wrong = {found for line in others for found in _NOT_UTF8.findall(line)}
        self.not_utf8 += bool(wrong)
        self._bytes |= wrong
        return not wrong

    def check(self) -> None:
        """Raises `Refused` if most rows with non-ASCII characters are not UTF-8, so the file has another encoding."""
        if 2 * self.not_utf8 > self.not_ascii:
            raise Refused(
                f"{self.not_utf8:,} of the {self.not_ascii:,} rows with non-ASCII characters are not UTF-8: "
                + another_encoding(_encoded("".join(self._bytes)))
            )


class _Lines:
    """The file's physical lines, each with the blank lines after it; `taken` has the lines of the current row."""

    def __init__(self, text: TextIO, longest: int, tick: Callable[[], None]) -> None:
        self.row, self.ending = 0, ""
        self.taken: list[str] = []
        self._lines = _split(text, longest, tick)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.taken.append(line)
        return line

    def begin(self, row: int) -> None:
        self.row = row
        self.taken.clear()

    def end(self) -> None:
        """Raises `Refused` if the row's line ending differs from that of the rows before it."""
        line = self.taken[-1]
        if not self.ending and line[-1] in "\r\n":
            endings = line[len(line.rstrip("\r\n")) :]
            self.ending = "\r\n" if endings.startswith("\r\n") else endings[0]
        # a line has line ends only after its text, so a different line end can be found without splitting the line
        if self.ending == "\r\n":
            mixed = not line.count("\r") == line.count("\n") == line.count("\r\n")
        else:
            mixed = ("\r" if self.ending == "\n" else "\n") in line
        if mixed:
            raise Refused("line endings are mixed; make them all LF or CRLF")


def _split(text: TextIO, longest: int, tick: Callable[[], None]) -> Iterator[str]:
    """Yields the text's lines, each with the blank lines after it, unless a block ends between them.

    Raises:
        Refused: a line is longer than `longest` bytes.
    """
    pending: list[str] = []
    size = 0
    held = ""  # a carriage return, until it is known whether it begins a CRLF
    while block := text.read(_BLOCK):
        tick()
        block = held + block
        held = "\r" if block.endswith("\r") else ""
        for line in _LINES.findall(block[:-1] if held else block):
            pending.append(line)
            size += len(line)
            # line ends don't count, but they are excluded only where that makes a difference
            if size > longest and sum(len(part.rstrip("\r\n")) for part in pending) > longest:
                raise Refused("a line became longer while it was being read")
            if line[-1] in "\r\n":
                yield "".join(pending) if len(pending) > 1 else line
                pending.clear()
                size = 0
    if pending or held:
        yield "".join(pending) + held


def _rows(lines: _Lines, columns: int, encoding: _Encoding) -> Iterator[tuple[int, str, str, list[str] | None]]:
    """Yields each row's number with its values, or with its line and the reason why it is not a row."""
    reader = csv.reader(lines, strict=True)
    row = -1  # the header becomes row 0
    while True:
        lines.begin(row + 1)
        values: list[str] = []
        problem = ""
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            problem = "a quote is never closed" if "end of data" in str(error) else "text after a closing quote"
            if "end of data" in str(error) and any(line.strip("\r\n") for line in lines.taken[1:]):
                raise Refused(_never_closed(row + 1)) from None
        lines.end()
        if not values and not problem:
            continue
        row += 1
        if row == 0:
            continue
        shaped = not problem and _has_shape(values, columns)
        is_utf8 = encoding.see(lines.taken)
        problem = problem or ("" if is_utf8 else "not UTF-8") or _problem(values, columns, lines.taken)
        if not problem:
            yield row, "", "", values[:columns]
            continue
        # A line of a multi-line value may look like a row. That is a sign of an unclosed quote only if this row does
        # not have the right number of values.
        if not shaped and columns > 1 and any(_is_row(line, columns) for line in lines.taken[1:]):
            raise Refused(_never_closed(row))
        yield row, _encoded("".join(lines.taken).rstrip("\r\n")).decode("utf-8", "replace"), problem, None


def _has_shape(values: list[str], columns: int) -> bool:
    # DuckDB accepts surplus commas at the end of a line
    return len(values) >= columns and not any(values[columns:])


def _problem(values: list[str], columns: int, taken: list[str]) -> str:
    if not _has_shape(values, columns):
        return f"{len(values)} value{'' if len(values) == 1 else 's'} instead of {columns}"
    # DuckDB ignores spaces before a quote, while Python's reader treats both as text
    if any(value.startswith(" ") and value.lstrip(" ").startswith('"') for value in values) and _SPACED_QUOTE.search(
        "".join(taken)
    ):
        return "a space before a quote"
    return ""


def _is_row(line: str, columns: int) -> bool:
    """Returns whether a line within quotes is a row by itself: if so, the quote should have been closed before it."""
    try:
        values = next(csv.reader([line]), [])
    except csv.Error:
        return False
    return len(values) == columns


def _never_closed(row: int) -> str:
    where = f"in row {row}" if row else "in the header"
    return f"a quote opened {where} is never closed"


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
