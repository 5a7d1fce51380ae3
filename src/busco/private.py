"""Folders of one user's own."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

# of processes whose files nobody else is to read
UMASK = 0o077


def make_private(folder: Path) -> None:
    """Makes a folder that only its owner may enter, whatever the umask; one that is there becomes it.

    So do the folders in it, which others may have entered, and stayed in, while it was open to them. Nothing below
    these has to change: nobody gets there.

    Raises:
        OSError: it can't be made, or changed.
        PermissionError: it belongs to somebody else, who may read and change what is put there.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if os.geteuid() not in (0, folder.stat().st_uid):
        raise PermissionError(0, "it belongs to another user", str(folder))
    _close(folder)
    for entry in os.scandir(folder):
        # one that is taken away just now; one of another user's, which nobody reaches any more
        with contextlib.suppress(OSError):
            if entry.is_dir(follow_symlinks=False):
                _close(Path(entry.path))


def _close(folder: Path) -> None:
    mode = stat.S_IMODE(folder.stat().st_mode)
    if mode != 0o700:
        folder.chmod(0o700)
