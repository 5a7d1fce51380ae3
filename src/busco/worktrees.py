"""The files of a commit, in a git worktree below the state folder."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from busco.errors import BuscoError

# worktrees that stay for the next time
_KEPT = 5


def full_commit(home: Path, commit: str) -> str | None:
    """The whole id of a commit, None where this clone doesn't have it.

    Raises:
        BuscoError: `home` is in no git repository.
    """
    if _git(home, "rev-parse", "--git-dir").returncode:
        raise BuscoError(f"{home} is in no git repository", "set BUSCO_HOME to a clone of the project")
    if not re.fullmatch("[0-9a-f]{7,}", commit):
        return None
    found = _git(home, "rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}")
    return found.stdout.strip() or None


def is_shallow(home: Path) -> bool:
    """Whether this clone has only the newest part of the history."""
    return _git(home, "rev-parse", "--is-shallow-repository").stdout.strip() == "true"


@contextmanager
def checked_out(home: Path, root: Path, commit: str) -> Iterator[Path]:
    """What `home` was in a commit, in a worktree `<root>/<commit>` that nobody takes away meanwhile.

    One that is there is used again if it is whole and unchanged; what was killed while being made is made anew. The
    worktrees that were used longest ago, and are not in use, are taken away.

    Raises:
        BuscoError: git can't make it, with git's reason.
    """
    root.mkdir(parents=True, exist_ok=True)
    folder = root / commit[:12]
    with _lock(folder) as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if not _is_whole(folder, commit):
            shutil.rmtree(folder, ignore_errors=True)
            # twice: git still knows, and may have locked, one whose making was killed
            made = _git(home, "worktree", "add", "--force", "--force", "--detach", str(folder), commit)
            if made.returncode:
                raise BuscoError(f"git can't make a worktree of {commit[:12]}: {made.stderr.strip()}")
        os.utime(folder)
        # a lock that is shared: others may run it too, nobody may take it away
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        _tidy(home, root)
        prefix = _git(home, "rev-parse", "--show-prefix").stdout.strip()
        yield folder / prefix


def _is_whole(folder: Path, commit: str) -> bool:
    # a folder that is no worktree (any more) is part of the one that the state folder lies in
    place = _git(folder, "rev-parse", "--show-toplevel", "HEAD") if folder.is_dir() else None
    if place is None or place.stdout.split("\n")[:2] != [str(folder.resolve()), commit]:
        return False
    status = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return status.returncode == 0 and not status.stdout.strip()


def _tidy(home: Path, root: Path) -> None:
    folders = sorted((f for f in root.iterdir() if f.is_dir()), key=lambda f: f.stat().st_mtime, reverse=True)
    for folder in folders[_KEPT:]:
        with _lock(folder) as descriptor:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            # not by prune: other worktrees of this clone may be on a disk that is away
            _git(home, "worktree", "remove", "--force", "--force", str(folder))
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _lock(folder: Path) -> Iterator[int]:
    """The file that says who uses a folder: freed when its holder dies, and never taken away."""
    descriptor = os.open(folder.with_name(f"{folder.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _git(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # whoever calls from a git hook has variables that name another repository
    variables = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", str(folder), "-c", "core.hooksPath=/dev/null", *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, env=variables)
    except OSError as error:
        raise BuscoError(f"git can't be run: {error.strerror}", "install git") from error
