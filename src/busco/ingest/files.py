"""Finds the files to ingest, matches each one to its table, and examines its content."""

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

# by default, the csv module rejects values of more than 131,072 characters; here, `Limits` limits rows instead (the
# module's limit applies to the whole process)
csv.field_size_limit(sys.maxsize)


@dataclass(frozen=True)
class Limits:
    """Limits on a file: bytes per row (without the line end), and total bytes uncompressed."""

    row_bytes: int
    file_bytes: int


@dataclass(frozen=True)
class SourceFile:
    """A file to ingest.

    Attributes:
        path: the path that the file is read from; once it is `opened`, the path of the open descriptor, which still
            refers to the same file even if the file's name no longer does.
        name: the file's path below the folder that the user gave, without a compression suffix (D1).
        folder: the folder that the user gave; None if the user gave the file itself.
        follow_links: whether the folder, the file and the folders in between may be links.
        version: of a fetched object, the id of the version that was read; otherwise ''.
    """

    path: Path
    name: str
    contract: Contract
    folder: Path | None = None
    follow_links: bool = False
    version: str = ""

    @property
    def label(self) -> str:
        """How messages name the file."""
        return str(self.path)

    @property
    def size(self) -> int:
        """The file's size in bytes; 0 if it can't be read."""
        try:
            return self.path.stat().st_size
        except OSError:
            return 0

    @property
    def origin(self) -> dict[str, str]:
        """The fields of a delivery's record that say what it was made from."""
        return {"source": self.path.name}

    @contextmanager
    def opened(self, _: Path) -> Iterator[SourceFile]:
        """Opens the file and yields it with the path of the open descriptor (/proc/self/fd).

        Everything that reads this path reads the same file, even if the file's name or a folder above it becomes a link
        in the meantime.

        Raises:
            Refused: the file can't be opened, is no longer a regular file, or has become a link.
        """
        with readable():
            descriptor = _open(self)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise Refused(_not_regular(os.fstat(descriptor).st_mode))
            yield replace(self, path=Path(f"/proc/self/fd/{descriptor}"))
        finally:
            os.close(descriptor)

    def has_changed(self, before: tuple[int, ...]) -> bool:
        """Whether the file was modified, replaced or deleted since it had the state `before`."""
        try:
            return state(self.path) != before
        except Refused:
            return True


@dataclass(frozen=True)
class Content:
    """The result of examining a file.

    Attributes:
        sha256: the hash of the file's uncompressed content; `bytes` is the size of the same content.
        header: the file's column names, in order.
        rows: the number of rows, excluding the header and blank lines (`RowCount`).
        longest: length in bytes of the longest row; only an upper bound if all rows are shorter than 1 MiB.
    """

    sha256: str
    bytes: int
    header: tuple[str, ...]
    compressed: bool
    rows: int
    longest: int


def state(path: Path) -> tuple[int, ...]:
    """Returns values that change if a file is modified or replaced: size in bytes, modification time, device, inode.

    Raises:
        Refused: the file no longer exists.
    """
    with readable():
        found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_dev, found.st_ino


def _open(file: SourceFile) -> int:
    # without O_NONBLOCK, opening a pipe that has no writer would block
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
    if file.follow_links:
        return os.open(file.path, flags)
    folder = file.folder or file.path.parent
    inner = file.path.relative_to(folder).parts
    # a folder that contains a given file may be a link, because the user chose it; a given folder must not be a link
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
    """Returns the files to ingest, and the paths that can't be ingested, each with the reason.

    A folder stands for all CSV files below it, sorted by name, so that their deliveries are made in the same order each
    time. The second list includes unreadable paths, so that they do not prevent the other files from being ingested.

    People who deliver files must not be able to choose what else is read from this machine: a link to a file or a
    folder, whether given directly or found below a folder, is refused unless `follow_links` is set.

    Raises:
        BuscoError: `table` is not a source table.
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
                unknown.append(
                    (file, f"its name matches no table ({known}); specify the table with --table. {OTHER_PROJECTS}")
                )
            elif wrong := long_name(contract, name):
                unknown.append((file, wrong))
            else:
                folder = path if file != path else None
                found.append(SourceFile(file, name, contract, folder, follow_links))
    return found, unknown


def _below(path: Path, follow_links: bool) -> Iterator[tuple[Path, str]]:
    """Yields a file itself or, for a folder, all paths below it that look like CSV files, each with its name.

    Pipes, and links that are not followed, are included so that they can be reported.
    """
    if not path.is_dir() or (path.is_symlink() and not follow_links):
        yield path, without_compression(path.name)
        return
    for file in sorted(_walk(path, follow_links, frozenset())) or [path]:
        yield file, without_compression(file.relative_to(path).as_posix())


def _walk(folder: Path, follow_links: bool, above: frozenset[tuple[int, int]]) -> Iterator[Path]:
    """Yields the paths below a folder that are to be ingested or reported.

    Args:
        above: device and inode of each folder above this one; a link to one of them would form a loop.
    """
    try:
        found = folder.stat()
        entries = list(os.scandir(folder))
    except OSError:
        yield folder  # it can't be listed
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
    """Returns why a path can't be ingested, or '' if it can."""
    try:
        if path.is_symlink() and not follow_links:
            return f"it is a link to {path.readlink()}; deliver the file itself, or allow links with --follow-links"
        mode = path.stat().st_mode
    except FileNotFoundError:
        return "it is a link to a file that does not exist" if path.is_symlink() else "it does not exist"
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    if stat.S_ISREG(mode):
        return ""
    if stat.S_ISDIR(mode) and not os.access(path, os.R_OK | os.X_OK):
        return "this folder cannot be read: Permission denied"
    if stat.S_ISDIR(mode):
        return "this folder contains no CSV files; specify files, or a folder with *.csv or *.csv.gz files"
    return _not_regular(mode)


def _not_regular(mode: int) -> str:
    if stat.S_ISFIFO(mode):
        return "it is a pipe, which can be read only once; write its content to a file first"
    return "it is a device or a socket, not a file"


def _no_name(name: str) -> str:
    """Returns why a name can't be stored in a record, or '' if it can."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return "its name is not UTF-8; rename it"
    return ""


def long_name(contract: Contract, name: str) -> str:
    """Returns why S3 would reject the object keys of a file's records, or '' if it accepts them."""
    try:
        layout.delivery(contract.source, contract.table, name, 999_999)
        layout.quarantine(contract.source, contract.table, name, layout.new_id())
    except BuscoError as error:
        return f"{error.message}; rename it, or run busco ingest on the folder that contains it"
    return ""


def is_csv(name: str) -> bool:
    return without_compression(name).lower().endswith(".csv")


def without_compression(name: str) -> str:
    return re.sub(r"\.gz$", "", name, flags=re.IGNORECASE)


def recognise(name: str, contracts: Iterable[Contract]) -> Contract | None:
    """Returns the contract for a file name: `orders.csv`, `olist_orders_dataset.csv`, `orders-2018-01.csv` → orders."""
    stem = re.sub(r"\.csv$", "", Path(name).name, flags=re.IGNORECASE).lower()
    for contract in sorted(contracts, key=lambda c: -len(c.table)):
        if re.fullmatch(rf"(?:[a-z0-9]+_)?{re.escape(contract.table)}(?:_dataset)?(?:[-.].*)?", stem, re.DOTALL):
            return contract
    return None


def examine(file: SourceFile, limits: Limits, progress: Callable[[int], None]) -> Content:
    """Reads a file once from start to end and returns its hash, size, header and number of rows.

    The limits bound memory and time. A file that is not a CSV with the contract's columns is refused after its first
    chunk.

    Args:
        progress: called with the number of (compressed) bytes read since the last call.

    Raises:
        Refused: the file is unreadable, empty, a broken gzip or over a limit, or its header does not have exactly the
            contract's columns.
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
            # the size is known before anything is read
            _check_size(file.path.stat().st_size, limits)
        stream: BinaryIO = gzip.GzipFile(fileobj=raw) if compressed else raw  # type: ignore[assignment]
        at = 0
        while chunk := stream.read(_CHUNK):
            if not header:
                # drop the blank lines before the header; there may be many
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
    """Decompresses an already examined gzip file to `target`.

    Args:
        tick: called regularly; an exception that it raises stops the work.

    Raises:
        Refused: the gzip file can no longer be read, or the disk is full (`readable`).
    """
    with readable(), gzip.open(path) as stream, target.open("wb") as out:
        while chunk := stream.read(_CHUNK):
            out.write(chunk)
            tick()


def _check_size(size: int, limits: Limits) -> None:
    if size > limits.file_bytes:
        raise Refused(
            f"it is larger than {limits.file_bytes:,} bytes uncompressed (BUSCO_INGEST_FILE_BYTES); split it, or raise "
            "that limit"
        )
