"""Which files are meant, which table each is for, and what each holds."""

from __future__ import annotations

import csv
import gzip
import hashlib
import re
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from busco.errors import BuscoError
from busco.ingest.header import read_header
from busco.ingest.refused import Refused, readable
from busco.ingest.row_count import BOM, RowCount
from busco.lake import layout
from busco.lake.deliveries import Contract, check_source

_GZIP = b"\x1f\x8b"
_CHUNK = 1 << 20

# Python's own limit for a value, of the whole process, is 131,072 characters; rows are limited by `Limits`
csv.field_size_limit(sys.maxsize)


@dataclass(frozen=True)
class Limits:
    """What a file may have: bytes in a row (without its line end), and bytes in all once it is decompressed."""

    row_bytes: int
    file_bytes: int


@dataclass(frozen=True)
class SourceFile:
    """A file to ingest: `name` is its path below the folder given, without compression suffix (D1)."""

    path: Path
    name: str
    contract: Contract


@dataclass(frozen=True)
class Content:
    """What was read of a file.

    Attributes:
        sha256: of its uncompressed content, as are `bytes`.
        header: its names, in order.
        rows: how many it has, without header and blank lines (`RowCount`).
        longest: bytes of the longest row; where all are shorter than 1 MiB, only that they are.
    """

    sha256: str
    bytes: int
    header: tuple[str, ...]
    compressed: bool
    rows: int
    longest: int


def state(path: Path) -> tuple[int, ...]:
    """What differs once a file was written to or replaced: size in bytes, time of change, device and inode.

    Raises:
        Refused: there is no such file any more.
    """
    with readable():
        found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_dev, found.st_ino


def find(
    paths: Sequence[Path], contracts: Sequence[Contract], table: str | None
) -> tuple[list[SourceFile], list[tuple[Path, str]]]:
    """The files to ingest, and those that can't be told a table, with the reason.

    A folder stands for all CSV files below it. Order is by name, so that deliveries come in the same order each time.
    A path that is no readable file is among the second too, so that it doesn't stop the others.

    Raises:
        BuscoError: `table` is no source table.
    """
    fixed = check_source(contracts, table) if table else None
    found: list[SourceFile] = []
    unknown: list[tuple[Path, str]] = []
    for path in paths:
        for file, name in _below(path):
            contract = fixed or recognise(name, contracts)
            if wrong := _no_file(file) or _no_name(name):
                unknown.append((file, wrong))
            elif contract is None:
                known = ", ".join(sorted(c.table for c in contracts))
                unknown.append((file, f"its name tells no table ({known}); give it with --table"))
            elif wrong := _long_name(contract, name):
                unknown.append((file, wrong))
            else:
                found.append(SourceFile(file, name, contract))
    return found, unknown


def _below(path: Path) -> Iterator[tuple[Path, str]]:
    """The file itself, or what looks like a CSV file in the folder: links to nowhere and pipes too, to be told of."""
    if not path.is_dir():
        yield path, without_compression(path.name)
        return
    files = sorted(file for file in path.rglob("*") if is_csv(file.name) and not file.is_dir())
    for file in files or [path]:
        yield file, without_compression(file.relative_to(path).as_posix())


def _no_file(path: Path) -> str:
    """Why a path can't be ingested, '' where it can."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return "a link to a file that does not exist" if path.is_symlink() else "it does not exist"
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    if stat.S_ISREG(mode):
        return ""
    if stat.S_ISDIR(mode):
        return "no CSV file below this folder; name files, or a folder with *.csv or *.csv.gz"
    if stat.S_ISFIFO(mode):
        return "a pipe can be read only once; write it to a file first"
    return "it is a device or a socket, not a file"


def _no_name(name: str) -> str:
    """Why a name can't be kept in a record, '' where it can."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return "its name is not UTF-8; rename it"
    return ""


def _long_name(contract: Contract, name: str) -> str:
    """Why S3 would refuse the keys of a file's records, '' where it takes them."""
    try:
        layout.delivery(contract.source, contract.table, name, 999_999)
        layout.quarantine(contract.source, contract.table, name, layout.new_id())
    except BuscoError as error:
        return f"{error.message}; rename it, or ingest it from its own folder"
    return ""


def is_csv(name: str) -> bool:
    return without_compression(name).lower().endswith(".csv")


def without_compression(name: str) -> str:
    return re.sub(r"\.gz$", "", name, flags=re.IGNORECASE)


def recognise(name: str, contracts: Iterable[Contract]) -> Contract | None:
    """The table that a file name tells: `orders.csv`, `olist_orders_dataset.csv`, `orders-2018-01.csv` → orders."""
    stem = re.sub(r"\.csv$", "", Path(name).name, flags=re.IGNORECASE).lower()
    for contract in sorted(contracts, key=lambda c: -len(c.table)):
        if re.fullmatch(rf"(?:[a-z0-9]+_)?{re.escape(contract.table)}(?:_dataset)?(?:[-.].*)?", stem, re.DOTALL):
            return contract
    return None


def examine(file: SourceFile, limits: Limits, progress: Callable[[int], None]) -> Content:
    """Reads a file once from end to end: its hash, its size, its header, the number of its rows.

    Memory and time are bounded by the limits. A file that is not a CSV of the contract is refused after its first
    chunk.

    Args:
        progress: called with the number of (compressed) bytes read since the last call.

    Raises:
        Refused: unreadable, empty, a broken gzip, over a limit, or a header that does not have exactly the contract's
            columns.
    """
    digest = hashlib.sha256()
    count = RowCount(limits.row_bytes)
    size = 0
    head = b""
    header: tuple[str, ...] = ()
    with readable(), file.path.open("rb") as raw:
        compressed = raw.read(2) == _GZIP
        raw.seek(0)
        if not compressed:
            # known before anything is read
            _check_size(file.path.stat().st_size, limits)
        stream: BinaryIO = gzip.GzipFile(fileobj=raw) if compressed else raw  # type: ignore[assignment]
        at = 0
        while chunk := stream.read(_CHUNK):
            if not header:
                # without the blank lines before it, of which there may be many
                head += chunk if head else chunk.removeprefix(BOM).lstrip(b"\r\n")
                if len(head) >= _CHUNK // 2:
                    header = read_header(file.path, head, compressed, file.contract)
            size += len(chunk)
            _check_size(size, limits)
            digest.update(chunk)
            count.feed(chunk)
            progress(raw.tell() - at)
            at = raw.tell()
    if size == 0:
        raise Refused("the file is empty (zero bytes)")
    header = header or read_header(file.path, head, compressed, file.contract)
    count.finish()
    return Content(digest.hexdigest(), size, header, compressed, count.rows - 1, count.longest)


def decompress(path: Path, target: Path, tick: Callable[[], None]) -> None:
    """Writes a gzip's content, which was examined before, to a file.

    Args:
        tick: called every now and then; what it raises ends the work.

    Raises:
        Refused: it can't be read any more, or the disk is full (`readable`).
    """
    with readable(), gzip.open(path) as stream, target.open("wb") as out:
        while chunk := stream.read(_CHUNK):
            out.write(chunk)
            tick()


def _check_size(size: int, limits: Limits) -> None:
    if size > limits.file_bytes:
        raise Refused(
            f"it has more than {limits.file_bytes:,} bytes uncompressed (BUSCO_INGEST_FILE_BYTES); split it, or raise "
            "that limit"
        )
