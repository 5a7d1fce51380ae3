"""Every row of a file is written or quarantined, whatever it contains, or the file is refused."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import os
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from busco.ingest import survey
from busco.ingest.files import Limits, SourceFile, examine
from busco.ingest.load import Loaded
from busco.ingest.refused import Refused
from busco.lake.deliveries import Contract
from busco.lake.records import Column
from tests.unit.folder_lake import FolderLake
from tests.unit.test_row_count import by_python


@pytest.fixture
def lake(tmp_path: Path) -> FolderLake:
    return FolderLake(tmp_path)


def counts(done: Loaded) -> tuple[str, int, int, int]:
    return done.outcome, done.rows, done.written, done.quarantined


# -- rows of any length -----------------------------------------------------------------------------------------------


def positions(row: bytes) -> Iterator[tuple[bytes, int]]:
    """Yields files in which the row is first, in the middle, last with a line end, and last without; and its number."""
    others = b"x,y\n" * 5
    yield b"a,b\n" + row + b"\n" + others, 1
    yield b"a,b\n" + others + row + b"\n" + others, 6
    yield b"a,b\n" + others + row + b"\n", 6
    yield b"a,b\n" + others + row, 6


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_a_file_with_a_row_over_the_limit_is_refused_wherever_the_row_is(lake: FolderLake, pack) -> None:
    for content, number in positions(b"q," + b"z" * 999):
        done = lake.ingest(pack(content), row_bytes=1000)
        assert (done.outcome, done.reason) == (
            "refused",
            f"row {number} is longer than 1,000 bytes (BUSCO_INGEST_ROW_BYTES)",
        )
        assert counts(lake.ingest(pack(content), row_bytes=1001))[0] == "ingested"
        assert ("q", "z" * 999, number) in lake.rows()


@pytest.mark.parametrize("size", [1_999_999, 2_100_000])
def test_a_row_longer_than_duckdbs_default_limit_is_ingested_whole(lake: FolderLake, size: int) -> None:
    for content, number in positions(b"q," + b"z" * size):
        done = lake.ingest(content)
        assert (done.outcome, done.written, done.quarantined) == ("ingested", content.count(b",") - 1, 0)
        assert ("q", "z" * size, number) in lake.rows()


@pytest.mark.parametrize("pack", [bytes, lambda content: gzip.compress(content, 1)], ids=["plain", "gzip"])
def test_a_last_row_that_is_longer_than_duckdbs_buffer_is_ingested_whole(lake: FolderLake, pack) -> None:
    content = b"a,b\nx,y\nq," + b"z" * 33_000_000
    assert counts(lake.ingest(pack(content), row_bytes=40_000_000)) == ("ingested", 2, 2, 0)
    (delivery,) = lake.deliveries
    sql = f"select b = repeat('z', 33000000) from read_parquet('{lake.url(delivery.object)}') where a = 'q'"
    assert lake.connection.execute(sql).fetchall() == [(True,)]


def test_consecutive_long_rows_are_ingested_even_next_to_quarantined_rows(lake: FolderLake) -> None:
    long = b'"' + b'z""' * 1_200_000 + b'"'
    content = b"a,b\n" + b"".join(b"%d," % i + long + b"\n" for i in range(6)) + b"only one\n" + b"\xff" * 2_500_000
    done = lake.ingest(content + b"\n\xc3\xa9,x\n\xc3\xa9,y\n")
    assert counts(done) == ("ingested", 10, 8, 2)
    assert [len(row[1]) for row in lake.rows()] == [2_400_000] * 6 + [1, 1]
    assert [(row[0], len(row[1]), row[2]) for row in lake.quarantined()] == [
        (7, 8, "1 value instead of 2"),
        (8, 2_500_000, "not UTF-8"),
    ]


def test_consecutive_rows_that_are_nearly_as_long_as_a_buffer_are_ingested(lake: FolderLake) -> None:
    content = b"a,b\n" + b"".join(b"%d," % i + b"z" * 15_000_000 + b"\n" for i in range(5))
    assert counts(lake.ingest(content)) == ("ingested", 5, 5, 0)


def test_a_file_whose_rows_need_too_much_memory_is_refused_with_what_to_do(lake: FolderLake) -> None:
    lake.connection.execute("set memory_limit = '60MB'")
    done = lake.ingest(b"a,b\n" + (b"q," + b"z" * 15_000_000 + b"\n") * 4)
    assert done.outcome == "refused"
    assert "raise BUSCO_DUCKDB_MEMORY_LIMIT" in done.reason
    assert lake.deliveries == []


def test_a_long_value_of_two_byte_characters_is_ingested_or_quarantined_whole(lake: FolderLake) -> None:
    value = "é" * 2_500_000
    # the value starts one byte later in the second file, so a cut falls inside a character in one of the two files
    for start in ("q", "qq"):
        content = f"a,b\nx,y\n{start},{value}\n".encode()
        assert counts(lake.ingest(content)) == ("ingested", 2, 2, 0)
        assert lake.rows()[1] == (start, value, 2)
        done = lake.ingest(f"a,b\nx,y\n{start}{value}\n".encode(), name=f"{start}.csv")
        assert counts(done) == ("ingested", 2, 1, 1)
    assert {row[1] for row in lake.quarantined()} == {"q" + value, "qq" + value}


def test_the_report_shows_the_beginning_of_a_long_value(lake: FolderLake) -> None:
    done = lake.ingest(b"a,b\nx," + b"1" * 50_000 + b"\ny,2\n", ("a VARCHAR", "b INTEGER"))
    assert done.examples == (f"row 1, b: {'1' * 100!r}… — not an INTEGER",)


# -- rows in = written + quarantined ----------------------------------------------------------------------------------

lines = st.lists(
    st.sampled_from(
        ["x,y", "é,漢", '"a\nb","🐢"', '"say ""hi""",z', ",", '"",""', "", "", "one", "a,b,c", '"open', 'a"b,c']
    ),
    max_size=8,
)
one_column = st.lists(st.sampled_from(["x", '""', "", '"é\n\n"', " ", "漢"]), max_size=8)


def check(lake: FolderLake, header: str, body: list[str], ending: str, last: bool, bom: bool, pack: bool) -> None:
    text = ending.join([header, *body]) + (ending if last else "")
    data = (b"\xef\xbb\xbf" if bom else b"") + text.encode()
    columns = [f"{name} VARCHAR" for name in header.split(",")]
    done = lake.ingest(gzip.compress(data) if pack else data, columns, f"{hashlib.sha256(data).hexdigest()}.csv")
    if done.outcome == "refused":
        assert re.search("a quote opened in row . is never closed|line endings are mixed", done.reason)
        return
    assert done.rows == done.written + done.quarantined == by_python(text) - 1
    if done.outcome == "ingested" and not done.quarantined:
        expected = [row for row in csv.reader(io.StringIO(text, newline="")) if row][1:]
        # an empty text becomes NULL
        assert lake.rows() == [(*(value or None for value in row), number) for number, row in enumerate(expected, 1)]


# all examples share one lake; each is a file with a name of its own
of_files = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@of_files
@given(lines, st.sampled_from(["\n", "\r\n", "\r"]), st.booleans(), st.booleans(), st.booleans())
def test_rows_in_equal_rows_written_plus_rows_quarantined(lake: FolderLake, body, ending, last, bom, pack) -> None:
    check(lake, "a,b", body, ending, last, bom, pack)


@of_files
@given(one_column, st.sampled_from(["\n", "\r\n", "\r"]), st.booleans(), st.booleans(), st.booleans())
def test_rows_of_a_single_column_are_distinguished_from_blank_lines(
    lake: FolderLake, body, ending, last, bom, pack
) -> None:
    check(lake, "a", body, ending, last, bom, pack)


LINES = '"bom dia,\nchegou, obrigado\nabraço"'


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (LINES.replace("o", "ó").encode("latin-1") + b",x", "not UTF-8"),
        (LINES.encode() + b', "x"', "a space before a quote"),
        (b'"x",' + LINES.encode("latin-1"), "not UTF-8"),
    ],
    ids=["not UTF-8", "a space before a quote", "not UTF-8 in the last value"],
)
def test_a_bad_row_with_line_ends_in_a_value_is_quarantined_alone(lake: FolderLake, row: bytes, reason: str) -> None:
    done = lake.ingest("a,b\né,x\né,y\n".encode() + row + b"\nz,z\nonly\n")
    assert (counts(done), done.reason) == (("ingested", 5, 3, 2), "")
    assert lake.quarantined()[0] == (3, row.decode("utf-8", "replace"), reason)


@pytest.mark.parametrize("text", ["é", "\xff"], ids=["UTF-8", "not UTF-8"])
def test_a_file_with_an_open_quote_that_swallows_other_rows_is_refused(lake: FolderLake, text: str) -> None:
    row = f'{text},"open\nz,w\nz,", x"\n'.encode("utf-8" if text == "é" else "latin-1")
    done = lake.ingest("a,b\né,x\né,y\n".encode() + row + b"z,z\n")
    assert (done.outcome, done.reason) == ("refused", "a quote opened in row 3 is never closed")


def test_a_file_is_refused_with_both_counts_if_the_reader_loses_rows(lake: FolderLake, monkeypatch) -> None:
    reader_sql = survey.checks.reader_sql
    monkeypatch.setattr(survey.checks, "reader_sql", lambda *given: f"(from {reader_sql(*given)} limit 2)")
    done = lake.ingest(b"a,b\n" + b"x,y\n" * 5)
    assert done.outcome == "refused"
    assert "it has 5 rows but busco accounted for 2, so nothing was ingested" in done.reason
    assert lake.deliveries == []


def test_a_file_is_refused_if_rows_are_lost_between_checking_and_writing(lake: FolderLake, monkeypatch) -> None:
    from busco.ingest import load

    copied = load._copy

    def lose(connection, file, sql: str):
        return copied(connection, file, re.sub(r"\)( to '.*/(?:bronze|quarantine)/)", r" limit 1)\1", sql))

    monkeypatch.setattr(load, "_copy", lose)
    for content in (b"a,b\nx,1\ny,2\n", b"a,b\nx,1\ny,z\nz,y\n"):
        done = lake.ingest(content, ("a VARCHAR", "b INTEGER"))
        assert done.outcome == "refused"
        assert "busco accounted for" in done.reason
    assert lake.deliveries == []


# -- blank lines ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [b"", b'"open\n'], ids=["by DuckDB", "row by row"])
def test_blank_lines_are_ignored_wherever_they_are(lake: FolderLake, bad: bytes) -> None:
    for content in (b"\n\na,b\nx,y\nz,w\n", b"a,b\n\nx,y\n\n\nz,w\n\n\n", b"\xef\xbb\xbf\na,b\nx,y\nz,w"):
        assert lake.ingest(content + (b"\n" + bad if bad else b"")).written == 2
        assert lake.rows() == [("x", "y", 1), ("z", "w", 2)]
    for content in (b'\na\n\n""\nz\n', b'a\n""\n\nz\n\n', b'a\n\n\n""\nz', b'a\n""\nz\n\n\n'):
        assert lake.ingest(content + (b"\n" + bad if bad else b""), ["a VARCHAR"]).written == 2
        assert lake.rows() == [(None, 1), ("z", 2)]


def test_millions_of_blank_lines_are_ignored(lake: FolderLake) -> None:
    for columns, row in ((["a VARCHAR", "b VARCHAR"], b"x,y"), (["a VARCHAR"], b"x")):
        for ending in (b"\n", b"\r\n"):
            content = (b"a,b" if len(columns) > 1 else b"a") + ending + row + ending * 3_000_000 + row + ending
            assert counts(lake.ingest(content, columns)) == ("ingested", 2, 2, 0)
            assert [found[-1] for found in lake.rows()] == [1, 2]
    # the second chunk ends inside the header
    assert lake.ingest(b"\n" * ((1 << 21) - 2) + b"a,b\nx,y\n").written == 1
    assert lake.ingest(b"\n" * (1 << 21)).reason == "no header line"


def test_D2_any_file_is_identified_by_the_hash_of_its_uncompressed_content(lake: FolderLake) -> None:
    for content in (
        b"a,b\nx,y\n",
        b"\xef\xbb\xbfa,b\n\n\nx,y",
        b'a,b\n\n"x"y,z\n',
        b"a,b\n" + b"x" * 3_000_000 + b",y\n",
    ):
        assert lake.ingest(content).outcome == "ingested"
        newest = max(lake.deliveries, key=lambda one: one.number)
        assert newest.content_hash == hashlib.sha256(content).hexdigest()
        assert lake.ingest(gzip.compress(content) + b"\0", name="t.csv").outcome == "known"


# -- gzip -------------------------------------------------------------------------------------------------------------


def member(content: bytes, flags: int = 0, fields: bytes = b"") -> bytes:
    """A gzip member with optional header fields (RFC 1952, 2.3)."""
    packing = zlib.compressobj(9, zlib.DEFLATED, -15)
    body = packing.compress(content) + packing.flush()
    head = b"\x1f\x8b\x08" + bytes([flags]) + b"\0\0\0\0\0\3" + fields
    if flags & 2:
        head += struct.pack("<H", zlib.crc32(head) & 0xFFFF)
    return head + body + struct.pack("<II", zlib.crc32(content), len(content))


TEXT = b"a,b\nx,y\nz,w\n"
FIELDS = b"\4\0abcd" + b"t.csv\0" + b"a comment\0"


@pytest.mark.parametrize(
    "packed",
    [
        member(TEXT, 16, b"a comment\0"),
        member(TEXT, 30, FIELDS),
        member(TEXT, 1),
        member(TEXT) + b"\0" * 1000,
        member(TEXT[:6]) + member(TEXT[6:], 8, b"name\0"),
        member(TEXT[:6]) + b"\0" * 7 + member(TEXT[6:], 16, b"a comment\0") + b"\0",
        member(b"") + member(TEXT) + member(b""),
    ],
    ids=["comment", "all fields", "text", "trailing zeros", "two members", "zeros between", "empty members"],
)
def test_every_valid_gzip_file_is_ingested(lake: FolderLake, packed: bytes) -> None:
    assert counts(lake.ingest(packed, name="t.csv.gz")) == ("ingested", 2, 2, 0)
    assert lake.rows() == [("x", "y", 1), ("z", "w", 2)]


@pytest.mark.parametrize("trailing", [b"garbage", b"\0\0garbage", member(TEXT)[:-3]])
def test_a_gzip_file_with_other_data_at_its_end_is_refused(lake: FolderLake, trailing: bytes) -> None:
    done = lake.ingest(member(TEXT) + trailing)
    assert done.outcome == "refused"
    assert done.reason.startswith("broken gzip")


NUMBERS = b"a,b\n" + b"".join(b"%d,%s\n" % (i, hashlib.sha256(b"%d" % i).hexdigest().encode()) for i in range(40_000))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 5)
        file.write(b"\xff" * (path.stat().st_size // 2))


def overwrite_as_members(path: Path) -> None:
    """Leaves a member that ends within the original bytes, followed by data that is not gzip."""
    content = path.read_bytes()
    with path.open("r+b") as file:
        file.write(content[: len(content) // 2] + b"garbage" * 20_000)


@pytest.mark.parametrize("change", [cut, overwrite, overwrite_as_members])
@pytest.mark.parametrize(
    "packed",
    [gzip.compress(NUMBERS + b"only one\n", 1), member(NUMBERS, 16, b"a comment\0")],
    ids=["row by row", "decompressed first"],
)
def test_a_gzip_that_changes_while_it_is_read_again_is_refused(lake: FolderLake, packed: bytes, change) -> None:
    changed: list[int] = []

    def progress(done: int) -> None:
        # it is called with 0 when part of the file has been read for the second time
        if done == 0 and not changed:
            changed.append(done)
            change(lake.folder / "t.csv")

    done = lake.ingest(packed, progress=progress)
    assert changed
    assert (done.outcome, done.reason) == ("refused", "it changed while it was being read")
    assert lake.deliveries == []


def test_a_file_over_the_limit_is_refused_while_it_is_read(lake: FolderLake) -> None:
    content = b"a,b\n" + b"x,y\n" * 1_000_000
    reason = "it is larger than 100,000 bytes uncompressed (BUSCO_INGEST_FILE_BYTES); split it, or raise that limit"
    for packed in (content, gzip.compress(content), gzip.compress(content) + b"garbage"):
        assert lake.ingest(packed, file_bytes=100_000).reason == reason
    assert list(lake.scratch.iterdir()) == []
    assert counts(lake.ingest(gzip.compress(content), file_bytes=len(content))) == ("ingested", 10**6, 10**6, 0)


def test_nothing_of_an_uncompressed_file_over_the_limit_is_read(tmp_path: Path) -> None:
    file = SourceFile(tmp_path / "t.csv", "t.csv", Contract("s", "t", (Column(name="a", type="VARCHAR"),), (), "rows"))
    size = 4_000_000
    file.path.write_bytes(b"a\n" * (size // 2))
    read: list[int] = []
    with pytest.raises(Refused, match="larger than 3,999,999 bytes"):
        examine(file, Limits(100, size - 1), read.append)
    assert read == []
    assert examine(file, Limits(100, size), read.append).rows == size // 2 - 1
    assert sum(read) == size
