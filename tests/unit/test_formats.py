"""A file in another format or encoding is refused; the message states its likely format and what to deliver instead."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import struct
import tarfile
import tracemalloc
import unicodedata
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.orc
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from busco.ingest.formats import another_format
from tests.unit.folder_lake import FolderLake

ROWS = [{"a": f"{i}", "b": "x,y"} for i in range(100)]
TABLE = pa.table({"a": [row["a"] for row in ROWS], "b": [row["b"] for row in ROWS]})
CSV = b"a,b\n1,2\n"
ERROR = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>'
)


@pytest.fixture
def lake(tmp_path: Path) -> FolderLake:
    return FolderLake(tmp_path)


def written(write, *given: object) -> bytes:
    out = io.BytesIO()
    write(*given, out)
    return out.getvalue()


def zipped(**files: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name.replace("__", "/").replace("_", "."), content)
    return out.getvalue()


def tarred(content: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        member = tarfile.TarInfo("t.csv")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


FORMATS = {
    "a Parquet file": written(pa.parquet.write_table, TABLE),
    "an ORC file": written(pa.orc.write_table, TABLE),
    "an Arrow file": written(lambda out: pa.ipc.new_file(out, TABLE.schema).close()),
    "an Avro file": b"Obj\x01\x04\x16avro.schema\x08null\0",
    "an Excel workbook (xlsx)": zipped(xl__workbook_xml=b"<x/>", xl__worksheets__sheet1_xml=b"<x/>"),
    "an Excel workbook in the old format (xls)": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 500,
    "an OpenDocument file (ods)": zipped(mimetype=b"x", content_xml=b"<x/>"),
    "a zip archive": zipped(t_csv=CSV),
    "compressed with bzip2": bz2.compress(CSV),
    "compressed with xz": lzma.compress(CSV),
    "compressed with zstd": pa.compress(CSV, "zstd", asbytes=True),
    "compressed with lz4": pa.compress(CSV, "lz4", asbytes=True),
    "a 7z archive": b"7z\xbc\xaf\x27\x1c\0\4",
    "compressed twice with gzip": gzip.compress(gzip.compress(CSV)),
    "a tar archive": tarred(CSV),
    "a PDF document": b"%PDF-1.7\n",
    "an SQLite database": b"SQLite format 3\0" + b"\0" * 100,
    "an HTML page": b"\n<!DOCTYPE html>\n<html><body>Log in, please</body></html>",
    "an S3 error page (AccessDenied)": ERROR,
    "an XML document": b'<?xml version="1.0"?><rows><row a="1"/></rows>',
    "JSON lines": "\n".join(json.dumps(row) for row in ROWS).encode(),
    "JSON": json.dumps(ROWS, indent=2).encode(),
    "UTF-16 text": CSV.decode().encode("utf-16"),
    "UTF-16 text without a byte-order mark": CSV.decode().encode("utf-16-le"),
    "UTF-32 text": CSV.decode().encode("utf-32"),
    "binary data": bytes(range(256)),
}


@pytest.mark.parametrize("what", FORMATS)
def test_a_file_in_another_format_is_refused_with_the_formats_name_and_what_to_do(lake: FolderLake, what: str) -> None:
    # with two columns, and with one: almost any file could be a CSV with a single column
    for columns in (("a VARCHAR", "b VARCHAR"), ("a VARCHAR",)):
        for content in (FORMATS[what], gzip.compress(FORMATS[what])):
            if what == "compressed twice with gzip" and content is not FORMATS[what]:
                continue
            done = lake.ingest(content, columns)
            assert done.outcome == "refused"
            assert done.reason.startswith(f"it is not CSV but seems to be {what}; ")
            assert len(done.reason) > len(f"it is not CSV but seems to be {what}; ")
    assert lake.deliveries == []


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (json.dumps(ROWS).encode(), "JSON"),
        (json.dumps(ROWS * 20_000, indent=1).encode(), "JSON"),
        (b"\xef\xbb\xbf" + json.dumps(ROWS[0], indent=1).encode(), "JSON"),
        (b"\n [\n]", "JSON"),
        (zipped(xl__workbook_xml=b"<x/>")[:-30], "an Excel workbook (xlsx)"),
        (zipped(t_csv=CSV)[:40], "a zip archive"),
        (CSV.decode().encode("utf-16-be"), "UTF-16 text without a byte-order mark"),
        (b"\xfe\xff" + CSV.decode().encode("utf-16-be"), "UTF-16 text"),
        (b"<html>\n<head><title>Not found</title>", "an HTML page"),
        (ERROR.split(b"\n")[1], "an S3 error page (AccessDenied)"),
    ],
)
def test_a_format_is_recognised_however_it_is_written(lake: FolderLake, content: bytes, what: str) -> None:
    assert lake.ingest(content).reason.startswith(f"it is not CSV but seems to be {what}; ")


@pytest.mark.parametrize(
    "start", ["{a", "{", "[a]", "PK", "PK\x03\x04", "PAR1", "ORC", "BZh9", "Obj", "<html>", "%PDF-"]
)
def test_a_csv_whose_header_begins_like_another_format_is_read_as_csv(lake: FolderLake, start: str) -> None:
    done = lake.ingest(f"{start},b\n1,2\n".encode(), (f"{start} VARCHAR", "b VARCHAR"))
    assert (done.outcome, done.written) == ("ingested", 1)


NONE = "none of the names on the first line is a column of the table: is the header missing, or is it further down?"


@pytest.mark.parametrize("header", ["{a,b", "{id},name", "[a],b", "PKID,b", "ORCID,name", "BZhang,b", "<b>,c", '"{",b'])
def test_a_csv_with_a_wrong_header_is_refused_for_its_missing_columns(lake: FolderLake, header: str) -> None:
    done = lake.ingest(f"{header}\n1,2\n".encode(), ("x VARCHAR", "y VARCHAR"))
    assert done.reason == f"missing columns x, y (table t); {NONE}"


def test_a_zip_whose_entry_names_are_not_in_the_flagged_encoding_is_recognised(lake: FolderLake) -> None:
    named = zipped(**{"relatório_csv": CSV}).replace("relatório".encode(), b"relat\xf3rio\xf3")
    for content in (named, gzip.compress(named)):
        assert lake.ingest(content).reason.startswith("it is not CSV but seems to be a zip archive; ")


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(4, 10_000), st.integers(0, 255)), min_size=1, max_size=3), st.integers(20, 10_000)
)
def test_a_zip_is_recognised_however_it_is_damaged(damage: list[tuple[int, int]], end: int) -> None:
    content = bytearray(zipped(relatório_csv=CSV, t_csv=CSV))
    for at, byte in damage:
        content[4 + at % (len(content) - 4)] = byte
    # only the beginning is available, as for a zip inside a gzip
    found = another_format(Path("t.csv"), bytes(content[:end]), compressed=True)
    assert found.startswith("it is not CSV but seems to be a zip archive; ")


def test_a_long_name_in_a_refusal_is_truncated(lake: FolderLake) -> None:
    assert len(lake.ingest(b"a,b," + b"x" * 500_000 + b"\n").reason) < 300


@pytest.mark.parametrize(
    ("start", "reason"),
    [
        ("sep=,\r\na,ção", "the first line is Excel's `sep=,`, not the header: delete it"),
        ('"SEP=,"\na,ção', "the first line is Excel's `SEP=,`, not the header: delete it"),
        (
            "sep=;\na;ção",
            "the first line is Excel's `sep=;`, not the header: delete it, and separate values with commas",
        ),
        ("a ,ção", "missing column a (table t); the header has 'a ' instead: correct the spaces"),
        ("a\u00a0,ção", r"missing column a (table t); the header has 'a\xa0' instead: correct the spaces"),
        ("\ufeffa,ção", r"missing column a (table t); the header has '\ufeffa' instead: correct the spaces"),
        (
            "A,Ção",
            "missing columns a, ção (table t); the header has 'A' and 'Ção' instead: correct the capitalization",
        ),
        (
            "a,cedilha",
            "missing column ção (table t)",
        ),
        (
            unicodedata.normalize("NFD", "a,ção"),
            f"missing column ção (table t); the header has '{unicodedata.normalize('NFD', 'ção')}' instead: "
            "correct the Unicode form (to NFC)",
        ),
        (
            unicodedata.normalize("NFD", "A, ção"),
            f"missing columns a, ção (table t); the header has 'A' and '{unicodedata.normalize('NFD', ' ção')}' "
            "instead: correct the spaces, the capitalization and the Unicode form (to NFC)",
        ),
        ("Relatório,\n,\na,ção", f"missing columns a, ção (table t); {NONE}"),
        ("maria@example.com,Maria", f"missing columns a, ção (table t); {NONE}"),
        ("a,ção,", "the header ends with a comma: delete it"),
        ("a,ção,,", "the header ends with 2 commas: delete them"),
        ("a,c,", "missing column ção (table t); the header also ends with a comma: delete it"),
        ("a,ção,c,", "unknown column c: not in the contract of t; the header also ends with a comma: delete it"),
        ("a,,ção", "unknown column (no name): not in the contract of t"),
        ("a,ção,a", "the header contains a column twice"),
    ],
)
def test_a_refusal_says_what_to_change_in_the_header(lake: FolderLake, start: str, reason: str) -> None:
    # the file has a byte-order mark, so one in `start` is the second
    done = lake.ingest(("\ufeff" + start + "\n1,2\n").encode(), ("a VARCHAR", "ção VARCHAR"))
    assert (done.outcome, done.reason) == ("refused", reason)


def test_a_column_of_the_contract_is_not_suggested_for_one_that_differs_in_case(lake: FolderLake) -> None:
    done = lake.ingest(b"A,b\n1,2\n", ("a VARCHAR", "A VARCHAR", "b VARCHAR"))
    assert done.reason == "missing column a (table t)"


def test_sep_is_an_ordinary_column_name_if_the_contract_has_it(lake: FolderLake) -> None:
    assert lake.ingest(b"sep=,b\n1,2\n", ("sep= VARCHAR", "b VARCHAR")).written == 1
    assert lake.ingest(b"sep=;\n1\n", ("sep=; VARCHAR",)).written == 1


# -- encodings --------------------------------------------------------------------------------------------------------


def encoded(rows: list[tuple[str, str]]) -> bytes:
    """Returns a file with two columns; each row is given as a string and its encoding."""
    return b"a,b\n" + b"".join(f"{text},x\n".encode(encoding) for text, encoding in rows)


@pytest.mark.parametrize(
    ("text", "encoding", "seems"),
    [
        ("São Paulo", "latin-1", "Latin-1 (ISO 8859-1) or Windows-1252, or CP850 if a DOS program wrote it; "),
        ("5 €", "cp1252", "Windows-1252, or CP850 if a DOS program wrote it; "),
        ("Conceição, José", "cp850", "Windows-1252, or CP850 if a DOS program wrote it; "),
        # no byte of this text shows that it is not Latin-1
        ("João", "cp850", "Latin-1 (ISO 8859-1) or Windows-1252, or CP850 if a DOS program wrote it; "),
        ("Zürich", "cp850", "in an older encoding, such as CP850 if a DOS program wrote it; "),
    ],
)
def test_a_file_that_is_mostly_not_utf_8_is_refused_with_its_likely_encoding(
    lake: FolderLake, text: str, encoding: str, seems: str
) -> None:
    wrong, right, plain = (f'"{text}"', encoding), ("São", "utf-8"), ("Sao", "ascii")
    done = lake.ingest(encoded([wrong, plain, right, plain, wrong, plain, plain]))
    assert done.outcome == "refused"
    start = f"2 of the 3 rows with non-ASCII characters are not UTF-8: the file seems to be {seems}convert it to UTF-8"
    assert done.reason.startswith(start)
    assert done.reason.endswith(" and check the accents in NEW")
    assert encoding.replace("cp", "").replace("latin-1", "1252") in done.reason
    assert lake.deliveries == []


def test_rows_that_are_not_utf_8_are_quarantined_if_they_are_at_most_half(lake: FolderLake) -> None:
    wrong, right, plain = ("São", "latin-1"), ("São", "utf-8"), ("Sao", "ascii")
    done = lake.ingest(encoded([wrong, plain, right, wrong, right]))
    assert (done.outcome, done.written, done.quarantined) == ("ingested", 3, 2)
    assert [(row[0], row[2]) for row in lake.quarantined()] == [(1, "not UTF-8"), (4, "not UTF-8")]


def test_a_header_that_is_not_utf_8_is_refused_with_its_likely_encoding(lake: FolderLake) -> None:
    done = lake.ingest("código,b\nx,y\n".encode("latin-1"), ("código VARCHAR", "b VARCHAR"))
    assert done.reason.startswith("the header is not UTF-8: the file seems to be Latin-1 (ISO 8859-1) or Windows-1252")
    assert lake.ingest("código,b\nx,y\n".encode(), ("código VARCHAR", "b VARCHAR")).written == 1


@pytest.mark.parametrize("zip64", [False, True])
def test_a_long_list_of_archive_entries_is_not_parsed(tmp_path: Path, zip64: bool) -> None:
    path = tmp_path / "orders.csv"
    number = 300_000
    entry = struct.pack("<4s6H3I5H2I", b"PK\1\2", *(0,) * 6, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    listed = entry * number
    first = b"PK\3\4" + bytes(26) + b"t.csv"
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 0, 0, 1 if zip64 else len(listed), len(first), 0)
    if zip64:
        longer = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, number, number, len(listed), len(first))
        end = longer + struct.pack("<4sIQI", b"PK\6\7", 0, len(first) + len(listed), 1) + end
    path.write_bytes(first + listed + end)
    tracemalloc.start()
    try:
        assert "a zip archive" in another_format(path, path.read_bytes()[:65_536], False)
        assert tracemalloc.get_traced_memory()[1] < 40_000_000, (
            "objects were created for the entries: this is more than the test's own read"
        )
    finally:
        tracemalloc.stop()
