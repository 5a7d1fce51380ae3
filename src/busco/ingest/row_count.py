"""Counts a CSV's rows from its bytes, as a check on the readers that parse its values.

DuckDB has lost rows without an error, so no reader's own count is trusted. This count shares no code with DuckDB's
reader or with Python's `csv`, but follows the same dialect as the latter (RFC 4180, `strict`):

- a row ends at an LF, CRLF or CR outside of quotes, or at the end of the file; a blank line is not a row;
- a quote opens a quoted value only if the value begins with it; `""` within quotes is a literal quote;
- a closing quote is followed by a comma or a line end. If other text follows it, the row is broken and ends at the
  end of the line.
"""

from __future__ import annotations

import re

from busco.ingest.refused import Refused

BOM = b"\xef\xbb\xbf"
_PIECE = 1 << 20

_QUOTE, _COMMA = b'",'
# Each match is a complete row, possibly broken, with the blank lines after it. The last match is everything from the
# first incomplete row to the end, so that the matches are contiguous.
_ROWS = re.compile(
    # Text, followed by a quoted value after a comma or a line end, or by a quote within an unquoted value. If other
    # text follows the closing quote, the row is broken and includes everything up to the end of the line.
    rb'(?:[^"\r\n]*+(?:(?<![^,\r\n])"[^"]*+(?:""[^"]*+)*+"(?:(?=[,\r\n])|[^",\r\n][^\r\n]*+(?=[\r\n]))'
    rb'|(?<=[^,\r\n])"))*+[^"\r\n]*+[\r\n]++'
    rb"|([\s\S]++)"
)
# quoted text up to the first quote that is not doubled
_WITHIN = re.compile(rb'[^"]*+(?:""[^"]*+)*+')
_LINE_END = re.compile(rb"[\r\n]")
_LINE_ENDS = re.compile(rb"[\r\n]*+")
# the end of unquoted text: a line end, or a comma that is followed by a quote or the end of the piece
_TEXT_END = re.compile(rb'[\r\n]|,(?="|\Z)')


# The states: where in a row the next byte is.
_ROW = 0  # at the beginning of a row
_VALUE = 1  # at the beginning of another value
_TEXT = 2  # in an unquoted value
_QUOTED = 3
_CLOSED = 4  # after a quote within quotes: the closing one, or the first of a doubled quote
_BROKEN = 5  # in text after a closing quote


class RowCount:
    """Counts the rows of a file that is read in chunks of any size.

    Attributes:
        rows: rows counted so far, including the header.
        longest: length in bytes of the longest row, without its line end; only an upper bound if all rows are shorter
            than 1 MiB.
    """

    def __init__(self, limit: int) -> None:
        """`limit`: the maximum number of bytes in a row, without its line end."""
        self.rows = self.longest = 0
        self._limit = limit
        self._state = _ROW
        self._done = 0  # bytes counted, without the byte-order mark
        self._row_began = 0
        self._first: bytes | None = b""  # until it is known whether the file begins with a byte-order mark

    def feed(self, chunk: bytes) -> None:
        """Counts the rows in the next chunk.

        Raises:
            Refused: a row is over the limit. The message gives the row's number: 1 for the first row after the header.
        """
        if self._first is not None:
            self._first += chunk
            if len(self._first) < len(BOM) and BOM.startswith(self._first):
                return
            chunk, self._first = self._first.removeprefix(BOM), None
        # no piece is over the limit, so a row can be over the limit only if it spans several pieces
        size = min(_PIECE, self._limit)
        for start in range(0, len(chunk), size):
            self._count(chunk[start : start + size])

    def finish(self) -> None:
        """Counts the last row if no line end follows it."""
        if self._first:
            self._count(self._first)
            self._first = b""
        if self._state is not _ROW:
            self._end(self._done)

    def _count(self, piece: bytes) -> None:
        self.longest = max(self.longest, len(piece))
        at = 0 if self._state is _ROW else self._walk(piece, 0, one=True)
        if self._state is _ROW:
            at = self._skim(piece, at)
            self._walk(piece, at)
        self._done += len(piece)
        if self._state is not _ROW:
            self._check(self._done - self._row_began)

    def _skim(self, piece: bytes, at: int) -> int:
        """Counts complete rows in bulk, starting at the beginning of a row; returns the position after them."""
        body = (piece[at:] if at else piece).lstrip(b"\r\n")
        rest = body
        if b'"' in body:
            found = _ROWS.findall(body)
            rest = found[-1] if found else b""
            self.rows += len(found) - bool(rest)
        else:
            end = max(body.rfind(b"\n"), body.rfind(b"\r")) + 1
            body, rest = body[:end], body[end:]
            if b"\r" in body:
                body = body.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
            while b"\n\n" in body:
                body = body.replace(b"\n\n", b"\n")
            self.rows += body.count(b"\n")
        at = len(piece) - len(rest)
        self._row_began = self._done + at
        return at

    def _walk(self, piece: bytes, at: int, one: bool = False) -> int:
        """Reads value by value to the end of the piece or, with `one`, of the row; returns the position reached."""
        while at < len(piece):
            if self._state is _ROW:
                at = _LINE_ENDS.match(piece, at).end()  # type: ignore[union-attr]
                self._row_began = self._done + at
                if one or at == len(piece):
                    return at
                self._state = _VALUE
            if self._state is _VALUE:
                quoted = piece[at] == _QUOTE
                self._state = _QUOTED if quoted else _TEXT
                at += quoted
            elif self._state is _QUOTED:
                at = _WITHIN.match(piece, at).end() + 1  # type: ignore[union-attr]
                if at > len(piece):
                    return len(piece)
                self._state = _CLOSED
            elif self._state is _CLOSED and piece[at] == _QUOTE:
                self._state = _QUOTED
                at += 1
            elif self._state is _CLOSED and piece[at] not in b",\r\n":
                self._state = _BROKEN
            else:
                if self._state is _CLOSED:
                    self._state = _TEXT
                end = (_LINE_END if self._state is _BROKEN else _TEXT_END).search(piece, at)
                if end is None:
                    return len(piece)
                at = end.start()
                if piece[at] == _COMMA:
                    self._state = _VALUE
                    at += 1
                else:
                    self._end(self._done + at)
        return at

    def _end(self, at: int) -> None:
        self._check(at - self._row_began)
        self.rows += 1
        self._state = _ROW

    def _check(self, size: int) -> None:
        self.longest = max(self.longest, size)
        if size <= self._limit:
            return
        row = f"row {self.rows}" if self.rows else "the header"
        quote = "; perhaps a quote in it is never closed" if self._state in (_QUOTED, _CLOSED) else ""
        raise Refused(f"{row} is longer than {self._limit:,} bytes (BUSCO_INGEST_ROW_BYTES){quote}")
