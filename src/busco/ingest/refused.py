"""What refuses a source file whole."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager


class Refused(Exception):
    """A file that is refused whole, and why."""


@contextmanager
def readable() -> Iterator[None]:
    """Turns an operating system error while a source file is read, or rewritten to scratch, into its refusal.

    Raises:
        Refused: for an `OSError` within.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Refused("it has to be rewritten below BUSCO_STATE_DIR first, and that disk is full") from error
        raise Refused(f"it cannot be read: {error.strerror or error}") from error
