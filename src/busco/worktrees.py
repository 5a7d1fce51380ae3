"""Checks out a commit's files in a git worktree under the state folder."""

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

# number of worktrees that are kept for reuse
_KEPT = 5


def full_commit(home: Path, commit: str) -> str | None:
    """Returns the full id of a commit, or None if the clone at `home` doesn't contain the commit.

    Raises:
        BuscoError: `home` is not in a git repository.
    """
    if _git(home, "rev-parse", "--git-dir").returncode:
        raise BuscoError(f"{home} is not in a git repository", "set BUSCO_HOME to a clone of the project")
    if not re.fullmatch("[0-9a-f]{7,}", commit):
        return None
    found = _git(home, "rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}")
    return found.stdout.strip() or None


def is_shallow(home: Path) -> bool:
    """Whether the clone at `home` contains only the most recent part of its history."""
    return _git(home, "rev-parse", "--is-shallow-repository").stdout.strip() == "true"


@contextmanager
def checked_out(home: Path, root: Path, commit: str) -> Iterator[Path]:
    """Yields `home` as of a commit, in a worktree `<root>/<commit>`, which no other process removes while it is in use.

    An existing worktree is reused if it is complete and unchanged; otherwise, for example after an interrupted
    creation, it is recreated. The least recently used worktrees are removed if they are not in use.

    Raises:
        BuscoError: git can't create the worktree; the message includes git's reason.
    """
    root.mkdir(parents=True, exist_ok=True)
    folder = root / commit[:12]
    with _lock(folder) as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if not _is_whole(folder, commit):
            shutil.rmtree(folder, ignore_errors=True)
            # --force twice: if an earlier creation was killed, git still has a record of it, which may be locked
            made = _git(home, "worktree", "add", "--force", "--force", "--detach", str(folder), commit)
            if made.returncode:
                raise BuscoError(f"git can't create a worktree for {commit[:12]}: {made.stderr.strip()}")
        os.utime(folder)
        # a shared lock: other processes can use the worktree too, but none can remove it
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        _tidy(home, root)
        prefix = _git(home, "rev-parse", "--show-prefix").stdout.strip()
        yield folder / prefix


def _is_whole(folder: Path, commit: str) -> bool:
    # The top level is compared because, in a folder that is not a worktree, git would find the repository that contains
    # the state folder.
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
            # not `git worktree prune`, which would also forget worktrees on disks that are currently not mounted
            _git(home, "worktree", "remove", "--force", "--force", str(folder))
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _lock(folder: Path) -> Iterator[int]:
    """Opens a folder's lock file, which is never removed; a lock on it is released when its holder dies."""
    descriptor = os.open(folder.with_name(f"{folder.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _git(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # if this process was started by a git hook, GIT_* variables refer to that hook's repository
    variables = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", str(folder), "-c", "core.hooksPath=/dev/null", *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, env=variables)
    except OSError as error:
        raise BuscoError(f"git can't be run: {error.strerror}", "install git") from error
