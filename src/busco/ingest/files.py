"""Which files are meant, which table each is for, and what each holds."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from busco.errors import BuscoError
from busco.lake.deliveries import Contract, check_source

_GZIP = b"\x1f\x8b"
_BOM = b"\xef\xbb\xbf"
_CHUNK = 1 << 20


@dataclass(frozen=True)
class SourceFile:
    """A file to ingest: `name` is its path below the folder given, without compression suffix (D1)."""

    path: Path
    name: str
    contract: Contract


@dataclass(frozen=True)
class Content:
    """What was read of a file: SHA-256 and bytes of its uncompressed content, the header's names in order."""

    sha256: str
    bytes: int
    header: tuple[str, ...]
    compressed: bool


class Refused(Exception):
    """A file that is refused whole, and why."""


def find(
    paths: Sequence[Path], contracts: Sequence[Contract], table: str | None
) -> tuple[list[SourceFile], list[tuple[Path, str]]]:
    """The files to ingest, and those that can't be told a table, with the reason.

    A folder stands for all CSV files below it. Order is by name, so that deliveries come in the same order each time.

    Raises:
        BuscoError: a path doesn't exist, a folder holds no CSV file, or `table` is no source table.
    """
    fixed = check_source(contracts, table) if table else None
    found: list[SourceFile] = []
    unknown: list[tuple[Path, str]] = []
    for path in paths:
        for file, name in _below(path):
            contract = fixed or recognise(name, contracts)
            if contract is None:
                known = ", ".join(sorted(c.table for c in contracts))
                unknown.append((file, f"its name tells no table ({known}); give it with --table"))
            else:
                found.append(SourceFile(file, name, contract))
    return found, unknown


def _below(path: Path) -> Iterator[tuple[Path, str]]:
    if path.is_file():
        yield path, without_compression(path.name)
    elif path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and is_csv(file.name))
        if not files:
            raise BuscoError(f"no CSV file below {path}", "name files or a folder with *.csv or *.csv.gz")
        for file in files:
            yield file, without_compression(file.relative_to(path).as_posix())
    else:
        raise BuscoError(f"{path} does not exist")


def is_csv(name: str) -> bool:
    return without_compression(name).lower().endswith(".csv")


def without_compression(name: str) -> str:
    return re.sub(r"\.gz$", "", name, flags=re.IGNORECASE)


def recognise(name: str, contracts: Iterable[Contract]) -> Contract | None:
    """The table that a file name tells: `orders.csv`, `olist_orders_dataset.csv`, `orders-2018-01.csv` → orders."""
    stem = re.sub(r"\.csv$", "", Path(name).name, flags=re.IGNORECASE).lower()
    for contract in sorted(contracts, key=lambda c: -len(c.table)):
        if re.fullmatch(rf"(?:[a-z0-9]+_)?{re.escape(contract.table)}(?:_dataset)?(?:[-.].*)?", stem):
            return contract
    return None


def examine(file: SourceFile, progress: Callable[[int], None]) -> Content:
    """Reads a file once from end to end: its hash, its size, its header.

    Args:
        progress: told the number of (compressed) bytes read since the last call.

    Raises:
        Refused: empty, a broken gzip, not text, or a header that does not have exactly the contract's columns.
    """
    digest = hashlib.sha256()
    size = 0
    head = b""
    with file.path.open("rb") as raw:
        magic = raw.read(2)
        raw.seek(0)
        compressed = magic == _GZIP
        stream: BinaryIO = gzip.GzipFile(fileobj=raw) if compressed else raw  # type: ignore[assignment]
        at = 0
        try:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
                size += len(chunk)
                if len(head) < _CHUNK:
                    head += chunk
                progress(raw.tell() - at)
                at = raw.tell()
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise Refused(f"broken gzip: {error}") from error
    if size == 0:
        raise Refused("the file is empty (zero bytes)")
    header = _header(head)
    _check_header(header, file.contract)
    return Content(digest.hexdigest(), size, header, compressed)


def _header(head: bytes) -> tuple[str, ...]:
    try:
        text = head.removeprefix(_BOM).decode("utf-8", errors="strict" if len(head) < _CHUNK else "ignore")
    except UnicodeDecodeError:
        text = head.removeprefix(_BOM).splitlines()[0].decode("utf-8", errors="replace")
    try:
        return tuple(next(csv.reader(io.StringIO(text, newline=""))))
    except (StopIteration, csv.Error) as error:
        raise Refused("no header line") from error


def _check_header(header: Sequence[str], contract: Contract) -> None:
    wanted = [column.name for column in contract.columns]
    missing = [name for name in wanted if name not in header]
    extra = [name for name in header if name not in wanted]
    if missing and len(header) == 1 and len(wanted) > 1:
        for delimiter, said in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
            if delimiter in header[0]:
                raise Refused(f"wrong delimiter: the header is divided by {said}, not commas")
    if missing:
        raise Refused(f"missing column{'s' if len(missing) > 1 else ''} {', '.join(missing)} (table {contract.table})")
    if extra:
        names = ", ".join(name or "(no name)" for name in extra)
        raise Refused(
            f"unknown column{'s' if len(extra) > 1 else ''} {names}: the contract of {contract.table} has none"
        )
    if len(set(header)) != len(header):
        raise Refused("the header names a column twice")
