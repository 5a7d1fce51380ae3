"""What refuses a source file whole."""

from __future__ import annotations

import errno
import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager


class Refused(Exception):
    """A file that is refused whole, and why."""


@contextmanager
def readable() -> Iterator[None]:
    """Turns an error while a source file is read, or rewritten to scratch, into the file's refusal.

    Raises:
        Refused: the file can't be read, its gzip is broken, or the disk of the scratch folder is full.
    """
    try:
        yield
    # before OSError, which BadGzipFile is one of
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise Refused(f"broken gzip: {error}") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Refused("it has to be rewritten below BUSCO_STATE_DIR first, and that disk is full") from error
        # of O_NOFOLLOW; ENOTDIR is that of a folder that has become a link or a file (open(2))
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise Refused("it, or a folder above it, has become a link while it was ingested") from error
        raise Refused(f"it cannot be read: {error.strerror or error}") from error
