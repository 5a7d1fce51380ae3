"""A file gone through row by row holds what DuckDB reads of it."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import duckdb
from hypothesis import given, settings
from hypothesis import strategies as st

from busco.ingest import checks, sift
from busco.ingest.files import Content
from busco.ingest.refused import Refused

# what CSV is made of, and nothing that only a contrived file has
pieces = st.lists(st.sampled_from(["a", ",", '"', "\n", " ", 'b"', '"\n"', ",a\n", '""']), max_size=12)

one_for_all = duckdb.connect(config={"threads": 1})


def read(connection: duckdb.DuckDBPyConnection, path: Path) -> list[tuple[object, ...]] | None:
    """DuckDB's rows and their numbers, None where it takes offence at a line."""
    try:
        reader = checks.reader_sql(str(path), {"x": "VARCHAR", "y": "VARCHAR"}, False)
        return connection.execute(f"select x, y, _source_row from ({checks.numbered_sql(reader)})").fetchall()
    except duckdb.Error:
        return None


def sifted(connection: duckdb.DuckDBPyConnection, path: Path) -> list[tuple[object, ...]] | None:
    """The same by sifting, None where a line is set aside or the file refused."""
    target = path.with_name("sifted.csv")
    try:
        content = Content("", path.stat().st_size, ("x", "y"), False, 0, path.stat().st_size)
        longest = sift.sift(path, content, target, lambda: None)
    except Refused:
        return None
    columns = dict.fromkeys((*sift.COLUMNS, "x", "y"), "VARCHAR")
    reader = checks.reader_sql(str(target), columns, False, longest)
    found = connection.execute(f"select x, y, cast(_sifted_row as bigint), _sifted_reason from {reader}").fetchall()
    return [row[:3] for row in found] if not any(row[3] for row in found) else None


@settings(max_examples=200, deadline=None)
@given(pieces)
def test_rows_and_their_numbers_are_the_same_by_duckdb_and_by_sifting(body: list[str]) -> None:
    with TemporaryDirectory() as folder, one_for_all.cursor() as connection:
        path = Path(folder) / "a.csv"
        path.write_bytes(("x,y\np,q\n" + "".join(body) + "\nr,s\n").encode())
        by_sifting = sifted(connection, path)
        # sifting may set aside what DuckDB takes (spaces around quotes), and never takes what DuckDB does not
        assert by_sifting is None or by_sifting == read(connection, path)


@settings(max_examples=200, deadline=None)
@given(pieces, st.integers(1, 5))
def test_what_is_sifted_does_not_depend_on_where_blocks_of_the_file_end(body: list[str], block: int) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "a.csv"
        path.write_bytes(("x,y\r\np,q\r\n" + "".join(body).replace("\n", "\r\n") + "\r\nr,s\r\n").encode())
        found = []
        for size in (sift._BLOCK, block):
            with mock.patch.object(sift, "_BLOCK", size):
                try:
                    content = Content("", path.stat().st_size, ("x", "y"), False, 0, path.stat().st_size)
                    sift.sift(path, content, path.with_name("sifted.csv"), lambda: None)
                    found.append(path.with_name("sifted.csv").read_bytes())
                except Refused as error:
                    found.append(str(error).encode())
        assert found[0] == found[1]


def test_blank_lines_are_gone_through_in_runs() -> None:
    for ending in ("\n", "\r\n", "\r"):
        text = io.StringIO(f"a{ending}" + "b" + ending * 1_000_000 + "c", newline="")
        lines = list(sift._split(text, 1, lambda: None))
        assert len(lines) < 10
        assert [row for row in csv.reader(lines, strict=True) if row] == [["a"], ["b"], ["c"]]


def test_lines_are_told_apart_by_any_ending_but_not_by_two() -> None:
    with TemporaryDirectory() as folder, duckdb.connect() as connection:
        path = Path(folder) / "a.csv"
        for ending in ("\n", "\r\n", "\r"):
            path.write_bytes(ending.join(["x,y", "p,q", "", "r,s", ""]).encode())
            assert sifted(connection, path) == [("p", "q", 1), ("r", "s", 2)]
        path.write_bytes(b"x,y\r\np,q\nr,s\n")
        assert sifted(connection, path) is None
