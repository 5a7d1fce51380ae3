"""Recognizes the format of a file that is not CSV, and suggests what to deliver instead.

Used only for a file whose header does not match the contract, so that no column name can be mistaken for a format.
The file's name is ignored because it is often wrong.
"""

from __future__ import annotations

import io
import json
import os
import re
import struct
import zipfile
from pathlib import Path

# The first bytes and the name of each binary format, with advice. Sources: the formats' specifications; the magic
# database of `file`.
_EXPORT = "export it as CSV"
_MAGIC: tuple[tuple[bytes, str, str], ...] = (
    (b"PAR1", "a Parquet file", _EXPORT),
    (b"PARE", "an encrypted Parquet file", _EXPORT),
    (b"Obj\x01", "an Avro file", _EXPORT),
    (b"ARROW1\0\0", "an Arrow file", _EXPORT),
    (b"SQLite format 3\0", "an SQLite database", _EXPORT),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an Excel workbook in the old format (xls)", "save its sheet as CSV UTF-8"),
    (b"%PDF-", "a PDF document", "deliver the data in it as CSV"),
    (b"BZh", "compressed with bzip2", "decompress it, or compress it with gzip instead"),
    (b"\xfd7zXZ\0", "compressed with xz", "decompress it, or compress it with gzip instead"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "decompress it, or compress it with gzip instead"),
    (b"\x04\x22\x4d\x18", "compressed with lz4", "decompress it, or compress it with gzip instead"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it and deliver the CSV files in it"),
    (b"\x1f\x8b", "compressed twice with gzip", "compress it only once"),
    (b"\xff\xfe\0\0", "UTF-32 text", "convert it to UTF-8: iconv -f UTF-32 -t UTF-8 OLD > NEW"),
    (b"\0\0\xfe\xff", "UTF-32 text", "convert it to UTF-8: iconv -f UTF-32 -t UTF-8 OLD > NEW"),
    (b"\xff\xfe", "UTF-16 text", "convert it to UTF-8: iconv -f UTF-16 -t UTF-8 OLD > NEW"),
    (b"\xfe\xff", "UTF-16 text", "convert it to UTF-8: iconv -f UTF-16 -t UTF-8 OLD > NEW"),
)
_BZIP2 = re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)")
_ZIP = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")
# the largest central directory that is read from a zip, and the maximum size of the end record with its comment
_MAX_DIRECTORY_BYTES = 1 << 20
_END_BYTES = 22 + 65_535 + 20  # plus the locator of the zip64 record
# What `zipfile` can raise for a central directory that it can't read. Only the first is documented; ValueError is
# raised for names that are flagged as UTF-8 but are not valid UTF-8.
_BROKEN_ZIP = (zipfile.BadZipFile, OSError, NotImplementedError, ValueError, EOFError, struct.error)
_ERROR_PAGE = re.compile(rb"<Error>\s*<Code>(\w+)</Code>")
# the beginning of JSON that is too long to parse here; in CSV, no quoted value begins after a bracket
_JSON = re.compile(r'(?:\{\s*"(?:[^"\\]|\\.)*"\s*:|\[\s*[\[{"]|\{\s*\}|\[\s*\])')


def another_format(path: Path, head: bytes, compressed: bool) -> str:
    """Returns what the file seems to be and what to deliver instead, in one sentence, or '' if it may be CSV.

    Args:
        head: the beginning of the file's decompressed content, without a byte-order mark or leading blank lines.
        compressed: whether the file itself is gzip.
    """
    found = _binary(path, head, compressed) or _text(head.lstrip())
    return f"it is not CSV but seems to be {found[0]}; {found[1]}" if found else ""


def _binary(path: Path, head: bytes, compressed: bool) -> tuple[str, str] | None:
    if head.startswith(_ZIP):
        return _zip(path, head, compressed)
    for magic, what, advice in _MAGIC:
        if head.startswith(magic) and (magic != b"BZh" or _BZIP2.match(head)):
            return what, advice
    if head.startswith(b"ORC") and b"\0" in head:
        return "an ORC file", _EXPORT
    if head[257:262] == b"ustar":
        return "a tar archive", "unpack it and deliver the CSV files in it"
    start = head[:200]
    if len(start) > 3 and b"\0" in start:
        if not any(start[::2]) or not any(start[1::2]):
            return "UTF-16 text without a byte-order mark", "convert it to UTF-8 (iconv -f UTF-16LE or UTF-16BE)"
        return "binary data", _EXPORT
    return None


def _zip(path: Path, head: bytes, compressed: bool) -> tuple[str, str]:
    try:
        # zipfile reads the whole central directory, which may be as large as the file
        if not compressed and _directory_bytes(path) > _MAX_DIRECTORY_BYTES:
            raise zipfile.BadZipFile("its central directory is too large")
        with zipfile.ZipFile(io.BytesIO(head) if compressed else path) as archive:
            names = archive.namelist()
    except _BROKEN_ZIP:
        # The zip is damaged, or only its beginning is available. The name of each entry is also in the entry's header.
        names = [name for name in ("xl/workbook.xml", "content.xml", "word/") if name.encode() in head]
    if any(name.startswith("xl/") for name in names):
        return "an Excel workbook (xlsx)", "save its sheet as CSV UTF-8"
    if "content.xml" in names:
        return "an OpenDocument file (ods)", "save its sheet as CSV UTF-8"
    return "a zip archive", "unpack it and deliver the CSV files in it, plain or compressed with gzip"


def _directory_bytes(path: Path) -> int:
    """Returns the size of a zip's central directory according to the zip's end record, or 0 if it has no such record.

    The directory of a zip64 archive counts as too large. Source: PKWARE, APPNOTE 4.3.15 and 16.
    """
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - _END_BYTES))
        end = file.read(_END_BYTES)
    if b"PK\6\7" in end:
        return _MAX_DIRECTORY_BYTES + 1
    at = end.rfind(b"PK\5\6")
    return int.from_bytes(end[at + 12 : at + 16], "little") if at >= 0 else 0


def _text(head: bytes) -> tuple[str, str] | None:
    start = head[:1000].lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "an HTML page", "a login or error page may have been saved instead of the file: download it again"
    if error := _ERROR_PAGE.search(head[:1000]):
        code = error[1].decode()
        return f"an S3 error page ({code})", "the download failed: download it again"
    if start.startswith((b"<?xml", b"<!doctype")):
        return "an XML document", _EXPORT
    if head[:1] in (b"{", b"["):
        return _json(head.decode("utf-8", "replace"))
    return None


def _json(text: str) -> tuple[str, str] | None:
    first = text.splitlines()[0]
    try:
        whole = isinstance(json.loads(first), dict | list)
    except (ValueError, RecursionError):
        whole = False
    if whole and first.startswith("{"):
        return "JSON lines", _EXPORT
    if whole or _JSON.match(text):
        return "JSON", _EXPORT
    return None


# the five bytes to which Windows-1252 assigns no character; they are control codes in Latin-1
_UNUSED_IN_WINDOWS = frozenset(b"\x81\x8d\x8f\x90\x9d")


def another_encoding(not_utf8: bytes) -> str:
    """Returns the likely encoding of text that contains these non-UTF-8 bytes, and how to convert it.

    The bytes don't distinguish CP850, the encoding of DOS programs, from Windows-1252: 0xC6 is ã in the first and Æ in
    the second. Text converted from the wrong encoding is valid UTF-8 too, so only a person who looks at it can notice
    the mistake.
    """
    found = frozenset(not_utf8)
    if found & _UNUSED_IN_WINDOWS:
        seems, command = "in an older encoding, such as CP850", "iconv -f CP850 -t UTF-8 OLD > NEW"
    else:
        latin = "" if any(byte < 0xA0 for byte in found) else "Latin-1 (ISO 8859-1) or "
        seems, command = f"{latin}Windows-1252, or CP850", "iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW (or -f CP850)"
    seems += " if a DOS program wrote it"
    return f"the file seems to be {seems}; convert it to UTF-8: {command}, and check the accents in NEW"
