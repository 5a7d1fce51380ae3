"""Which files are meant, which table each is for, and what each holds."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import re
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from busco.errors import BuscoError
from busco.lake import layout
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


@contextmanager
def readable() -> Iterator[None]:
    """Around what reads a source file: what the operating system says against it refuses that file.

    Raises:
        Refused: for an `OSError` within.
    """
    try:
        yield
    except OSError as error:
        raise Refused(f"it cannot be read: {error.strerror or error}") from error


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


def examine(file: SourceFile, progress: Callable[[int], None]) -> Content:
    """Reads a file once from end to end: its hash, its size, its header.

    Args:
        progress: told the number of (compressed) bytes read since the last call.

    Raises:
        Refused: unreadable, empty, a broken gzip, or a header that does not have exactly the contract's columns.
    """
    digest = hashlib.sha256()
    size = 0
    head = b""
    with readable(), file.path.open("rb") as raw:
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
