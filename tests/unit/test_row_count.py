"""Counting rows in a file's bytes agrees with Python's CSV reader of the same dialect, wherever chunks end."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from busco.ingest.refused import Refused
from busco.ingest.row_count import RowCount

# parts of CSV files, combined into valid and invalid text; é, 漢 and 🐢 have two, three and four bytes
PIECES = [
    "a",
    "é",
    "漢",
    "🐢",
    ",",
    '"',
    '""',
    "\n",
    "\r\n",
    "\r",
    "\n\n",
    " ",
    'b"',
    '"x\ny"',
    ',"',
    '",',
    '"\n',
    "\0",
]
texts = st.lists(st.sampled_from(PIECES), max_size=30).map("".join)


def by_python(text: str) -> int:
    """Counts non-blank records with `csv`; a record that violates the dialect ends with its line."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    found = 0
    while True:
        try:
            found += bool(next(reader))
        except StopIteration:
            return found
        except csv.Error:
            found += 1


def count(data: bytes, chunk: int = 1 << 20, limit: int = 1 << 20) -> RowCount:
    counting = RowCount(limit)
    for start in range(0, len(data), chunk):
        counting.feed(data[start : start + chunk])
    counting.finish()
    return counting


@settings(max_examples=500, deadline=None)
@given(texts, st.booleans(), st.integers(1, 9), st.integers(30, 40))
def test_the_number_of_rows_equals_that_of_python_s_reader_wherever_chunks_end(
    text: str, bom: bool, chunk: int, limit: int
) -> None:
    data = (b"\xef\xbb\xbf" if bom else b"") + text.encode()
    # a limit that splits chunks further, but that no row exceeds
    limit = max(limit, len(data))
    assert count(data, chunk, limit).rows == by_python(text)
    assert count(data).rows == by_python(text)


@settings(max_examples=200, deadline=None)
@given(texts, st.integers(1, 12), st.integers(1, 40))
def test_the_first_row_over_the_limit_is_named_wherever_chunks_end(text: str, limit: int, chunk: int) -> None:
    rows = RowLengths(text).found
    over = next((number for number, size in enumerate(rows) if size > limit), None)
    if over is None:
        assert count(text.encode(), chunk, limit).longest >= max(rows, default=0)
    else:
        with pytest.raises(Refused, match=f"^row {over} is" if over else "^the header is"):
            count(text.encode(), chunk, limit)


class RowLengths:
    """The bytes of each row without its line ending, according to the lines that Python's reader consumes."""

    def __init__(self, text: str) -> None:
        self._lines = iter(io.StringIO(text, newline=""))
        self._taken = ""
        self.found: list[int] = []
        reader = csv.reader(self, strict=True)
        while True:
            self._taken = ""
            try:
                values = bool(next(reader))
            except StopIteration:
                return
            except csv.Error as error:
                values = True
                if "end of data" in str(error):
                    # the file ends within quotes, so the line endings within them are part of the row
                    self.found.append(len(self._taken.encode()))
                    continue
            if values:
                ended = self._taken.removesuffix("\n").removesuffix("\r")
                self.found.append(len(ended.encode()))

    def __iter__(self) -> RowLengths:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self._taken += line
        return line


def test_rows_are_counted_in_files_of_many_chunks() -> None:
    plain = b"".join(b"%d,x,1.50\n" % i for i in range(200_000))
    quoted = b"".join(b'"%d","x\n\ny, ""z""","1.50"\r\n\r\n' % i for i in range(100_000))
    broken = b"".join(b'%d,a"b,"c" d,"e\n' % i for i in range(50_000))
    assert [count(data).rows for data in (plain, quoted, broken)] == [200_000, 100_000, 50_000]


class Walked(RowCount):
    """Also counts the bytes that were read value by value, which is many times slower than reading whole rows."""

    walked = 0

    def _walk(self, piece: bytes, at: int, one: bool = False) -> int:
        end = super()._walk(piece, at, one)
        self.walked += end - at
        return end


@pytest.mark.parametrize(
    "rows",
    [b'"1" x,2\n' + b'"1","abc","de"\n' * 20, b'"a"b\n', b'"a""b"c"d,"\r\n', b'x,"a" b\r"a" ,\r'],
    ids=["some", "all", "with more quotes", "CR"],
)
def test_rows_with_text_after_a_closing_quote_are_counted_as_fast_as_others(rows: bytes) -> None:
    counting = Walked(1 << 20)
    times = 1_500_000 // len(rows)
    data = b"h\n" + rows * times
    for start in range(0, len(data), 1 << 20):
        counting.feed(data[start : start + (1 << 20)])
    counting.finish()
    assert counting.rows == 1 + times * by_python(rows.decode())
    # only the rows that are split by the end of a chunk
    assert counting.walked < 200


def test_a_row_of_exactly_the_limit_is_accepted() -> None:
    for ending in (b"", b"\n", b"\r\n", b"\r"):
        assert count(b"a\n" + b"x" * 50 + ending, 7, 50).rows == 2
        with pytest.raises(Refused, match=r"row 1 is longer than 50 bytes \(BUSCO_INGEST_ROW_BYTES\)$"):
            count(b"a\n" + b"x" * 51 + ending, 7, 50)
    with pytest.raises(Refused, match="the header is longer than 50 bytes"):
        count(b"x" * 51 + b"\na\n", 7, 50)
    with pytest.raises(Refused, match="row 1 is longer than 50 bytes .*; perhaps a quote in it is never closed"):
        count(b'a\n"b\n' + b"c,d\n" * 50, 7, 50)
