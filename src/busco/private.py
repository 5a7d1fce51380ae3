"""Creates folders that only their owner can access, and restricts existing folders to their owner."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

# the umask of processes whose files other users must not read
UMASK = 0o077


def make_private(folder: Path) -> None:
    """Creates a folder that only its owner can enter, whatever the umask; restricts an existing one to its owner.

    Its direct subfolders are restricted too, since other users may have entered them while the folder was open, and may
    still be in them. Deeper levels need no change: other users can't reach them.

    Raises:
        OSError: the folder can't be created or changed.
        PermissionError: the folder belongs to another user, who could read and change its contents.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if os.geteuid() not in (0, folder.stat().st_uid):
        raise PermissionError(0, "it belongs to another user", str(folder))
    _close(folder)
    for entry in os.scandir(folder):
        # the entry may have just been removed, or may belong to another user, who can no longer reach it
        with contextlib.suppress(OSError):
            if entry.is_dir(follow_symlinks=False):
                _close(Path(entry.path))


def _close(folder: Path) -> None:
    mode = stat.S_IMODE(folder.stat().st_mode)
    if mode != 0o700:
        folder.chmod(0o700)
