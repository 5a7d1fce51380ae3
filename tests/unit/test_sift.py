"""Sifting a file row by row yields the same rows as DuckDB's reader."""

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

# parts of CSV files as they occur in practice
pieces = st.lists(st.sampled_from(["a", ",", '"', "\n", " ", 'b"', '"\n"', ",a\n", '""']), max_size=12)

shared_connection = duckdb.connect(config={"threads": 1})


def read(connection: duckdb.DuckDBPyConnection, path: Path) -> list[tuple[object, ...]] | None:
    """Returns DuckDB's rows with their numbers, or None if it rejects a line."""
    try:
        reader = checks.reader_sql(str(path), {"x": "VARCHAR", "y": "VARCHAR"}, False)
        return connection.execute(f"select x, y, _source_row from ({checks.numbered_sql(reader)})").fetchall()
    except duckdb.Error:
        return None


def sifted(connection: duckdb.DuckDBPyConnection, path: Path) -> list[tuple[object, ...]] | None:
    """Returns the same from sifting, or None if a line is rejected or the file is refused."""
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
def test_rows_and_their_numbers_are_the_same_from_duckdb_and_from_sifting(body: list[str]) -> None:
    with TemporaryDirectory() as folder, shared_connection.cursor() as connection:
        path = Path(folder) / "a.csv"
        path.write_bytes(("x,y\np,q\n" + "".join(body) + "\nr,s\n").encode())
        by_sifting = sifted(connection, path)
        # sifting may reject what DuckDB accepts (spaces around quotes), but never accepts what DuckDB rejects
        assert by_sifting is None or by_sifting == read(connection, path)


@settings(max_examples=200, deadline=None)
@given(pieces, st.integers(1, 5))
def test_the_result_of_sifting_does_not_depend_on_where_blocks_end(body: list[str], block: int) -> None:
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


def test_consecutive_blank_lines_are_processed_together() -> None:
    for ending in ("\n", "\r\n", "\r"):
        text = io.StringIO(f"a{ending}" + "b" + ending * 1_000_000 + "c", newline="")
        lines = list(sift._split(text, 1, lambda: None))
        assert len(lines) < 10
        assert [row for row in csv.reader(lines, strict=True) if row] == [["a"], ["b"], ["c"]]


def test_any_line_ending_is_accepted_but_not_two_in_one_file() -> None:
    with TemporaryDirectory() as folder, duckdb.connect() as connection:
        path = Path(folder) / "a.csv"
        for ending in ("\n", "\r\n", "\r"):
            path.write_bytes(ending.join(["x,y", "p,q", "", "r,s", ""]).encode())
            assert sifted(connection, path) == [("p", "q", 1), ("r", "s", 2)]
        path.write_bytes(b"x,y\r\np,q\nr,s\n")
        assert sifted(connection, path) is None
