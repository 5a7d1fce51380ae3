"""Defines the error for a source file that is refused as a whole."""

from __future__ import annotations

import errno
import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager


class Refused(Exception):
    """A source file is refused as a whole; the message gives the reason.

    Attributes:
        transient: whether the same content may be accepted later, because the reason is not in the content: the disk,
            the memory, a permission, another file.
    """

    def __init__(self, message: str, transient: bool = False) -> None:
        super().__init__(message)
        self.transient = transient


@contextmanager
def readable() -> Iterator[None]:
    """Turns errors in reading a source file, or in rewriting it to the scratch folder, into a refusal of the file.

    Raises:
        Refused: the file can't be read, its gzip is broken, or the scratch folder's disk is full.
    """
    try:
        yield
    # before OSError, because BadGzipFile is a subclass of it
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise Refused(f"broken gzip: {error}") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            why = "busco first has to write a copy of it to BUSCO_STATE_DIR, but the disk is full"
            raise Refused(why, transient=True) from error
        # O_NOFOLLOW fails with ELOOP; ENOTDIR means that a folder has become a link or a file (open(2))
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise Refused("it, or a folder above it, became a link while it was being ingested") from error
        # anything else is the machine's fault, such as EIO or EMFILE, or a permission
        raise Refused(f"it cannot be read: {error.strerror or error}", transient=True) from error
