"""Which files are meant, which table each is for, and what each holds."""

from __future__ import annotations

import csv
import gzip
import hashlib
import os
import re
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from busco.errors import BuscoError
from busco.ingest.header import read_header
from busco.ingest.refused import Refused, readable
from busco.ingest.row_count import BOM, RowCount
from busco.lake import layout
from busco.lake.deliveries import OTHER_PROJECTS, Contract, check_source

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
    """A file to ingest.

    Attributes:
        path: where its bytes are read; within `opened` that is the open file, whatever its name stands for by then.
        name: its path below the folder given, without compression suffix (D1).
        folder: the folder given; None where the file itself was.
        follow_links: whether the folder, the file, and the folders between them may be links.
    """

    path: Path
    name: str
    contract: Contract
    folder: Path | None = None
    follow_links: bool = False


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


@contextmanager
def opened(file: SourceFile) -> Iterator[SourceFile]:
    """The file with `path` as that of the open file (/proc/self/fd), so that all who read it by its path read the same
    one, even if its name, or that of a folder above it, becomes a link meanwhile.

    Raises:
        Refused: it can't be opened, is no file any more, or has become a link.
    """
    with readable():
        descriptor = _open(file)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise Refused(_not_regular(os.fstat(descriptor).st_mode))
        yield replace(file, path=Path(f"/proc/self/fd/{descriptor}"))
    finally:
        os.close(descriptor)


def _open(file: SourceFile) -> int:
    # a pipe that nobody writes to would be waited for
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
    if file.follow_links:
        return os.open(file.path, flags)
    folder = file.folder or file.path.parent
    inner = file.path.relative_to(folder).parts
    # the folder that a file was named in is the user's own word; one that was named itself may not be a link
    at = os.open(folder, flags | os.O_DIRECTORY | (os.O_NOFOLLOW if file.folder else 0))
    for place, part in enumerate(inner):
        above = at
        try:
            at = os.open(part, flags | os.O_NOFOLLOW | (os.O_DIRECTORY if place < len(inner) - 1 else 0), dir_fd=above)
        finally:
            os.close(above)
    return at


def find(
    paths: Sequence[Path], contracts: Sequence[Contract], table: str | None, follow_links: bool = False
) -> tuple[list[SourceFile], list[tuple[Path, str]]]:
    """The files to ingest, and those that can't be told a table, with the reason.

    A folder stands for all CSV files below it. Order is by name, so that deliveries come in the same order each time.
    A path that is no readable file is among the second too, so that it doesn't stop the others.

    Whoever delivers files must not choose what else is read of this machine: a link, to a file or a folder, given
    itself or found below a folder, is refused, unless links are to be followed.

    Raises:
        BuscoError: `table` is no source table.
    """
    fixed = check_source(contracts, table) if table else None
    found: list[SourceFile] = []
    unknown: list[tuple[Path, str]] = []
    for path in paths:
        for file, name in _below(path, follow_links):
            contract = fixed or recognise(name, contracts)
            if wrong := _no_file(file, follow_links) or _no_name(name):
                unknown.append((file, wrong))
            elif contract is None:
                known = ", ".join(sorted(c.table for c in contracts))
                unknown.append((file, f"its name tells no table ({known}); give it with --table. {OTHER_PROJECTS}"))
            elif wrong := _long_name(contract, name):
                unknown.append((file, wrong))
            else:
                folder = path if file != path else None
                found.append(SourceFile(file, name, contract, folder, follow_links))
    return found, unknown


def _below(path: Path, follow_links: bool) -> Iterator[tuple[Path, str]]:
    """The file itself, or what looks like a CSV file in the folder: pipes, and links that are not followed, too, to be
    told of."""
    if not path.is_dir() or (path.is_symlink() and not follow_links):
        yield path, without_compression(path.name)
        return
    for file in sorted(_walk(path, follow_links, frozenset())) or [path]:
        yield file, without_compression(file.relative_to(path).as_posix())


def _walk(folder: Path, follow_links: bool, above: frozenset[tuple[int, int]]) -> Iterator[Path]:
    """What is to be taken or told of below a folder.

    Args:
        above: device and inode of the folders that it was reached through: a link to one of them leads in a circle.
    """
    try:
        found = folder.stat()
        entries = list(os.scandir(folder))
    except OSError:
        yield folder  # it can't be looked into
        return
    here = (found.st_dev, found.st_ino)
    if here in above:
        return
    for entry in entries:
        path = folder / entry.name
        if entry.is_dir(follow_symlinks=follow_links):
            yield from _walk(path, follow_links, above | {here})
        elif is_csv(entry.name) or entry.is_dir():
            yield path


def _no_file(path: Path, follow_links: bool) -> str:
    """Why a path can't be ingested, '' where it can."""
    try:
        if path.is_symlink() and not follow_links:
            return f"a link, to {path.readlink()}; deliver the file itself, or allow links with --follow-links"
        mode = path.stat().st_mode
    except FileNotFoundError:
        return "a link to a file that does not exist" if path.is_symlink() else "it does not exist"
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    if stat.S_ISREG(mode):
        return ""
    if stat.S_ISDIR(mode) and not os.access(path, os.R_OK | os.X_OK):
        return "this folder cannot be read: Permission denied"
    if stat.S_ISDIR(mode):
        return "no CSV file below this folder; name files, or a folder with *.csv or *.csv.gz"
    return _not_regular(mode)


def _not_regular(mode: int) -> str:
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
