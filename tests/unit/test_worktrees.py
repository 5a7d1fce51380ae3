"""Worktrees of commits are reused while intact, recreated after a kill, and removed when there are too many."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from busco import worktrees
from busco.errors import BuscoError


def git(folder: Path, *arguments: str) -> str:
    author = ["-c", "user.name=test", "-c", "user.email=test@example.com"]
    command = ["git", "-C", str(folder), *author, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A project in a subfolder of its repository, with six commits."""
    folder = tmp_path / "repository/project"
    folder.mkdir(parents=True)
    git(folder.parent, "init", "--quiet")
    for number in range(6):
        (folder / "file").write_text(str(number))
        git(folder, "add", ".")
        git(folder, "commit", "--quiet", "-m", str(number))
    return folder


def commits(home: Path) -> list[str]:
    return git(home, "log", "--format=%H", "--reverse").splitlines()


def content(home: Path, commit: str) -> str:
    with worktrees.checked_out(home, home / ".busco", commit) as folder:
        return (folder / "file").read_text()


def test_a_worktree_has_the_project_s_files_at_its_commit(home: Path) -> None:
    assert [content(home, commit) for commit in commits(home)[:3]] == ["0", "1", "2"]
    assert (home / "file").read_text() == "5"
    assert git(home, "status", "--porcelain", "--untracked-files=no") == ""


@pytest.mark.parametrize("damage", ["file gone", "file changed", "link gone", "all gone", "half made", "locked"])
def test_a_damaged_or_incomplete_worktree_is_recreated(home: Path, damage: str) -> None:
    commit = commits(home)[0]
    folder = home / ".busco" / commit[:12]
    if damage == "half made":
        folder.mkdir(parents=True)
        (folder / "project").mkdir()
    else:
        assert content(home, commit) == "0"
    match damage:
        case "file gone":
            (folder / "project/file").unlink()
        case "file changed":
            (folder / "project/file").write_text("other")
        case "link gone":
            (folder / ".git").unlink()
        case "all gone":
            shutil.rmtree(folder)
        case "locked":
            git(home, "worktree", "lock", str(folder))
            shutil.rmtree(folder)
    assert content(home, commit) == "0"
    assert git(home, "worktree", "list").count("\n") == 1


def test_an_intact_worktree_is_reused_with_files_that_a_process_left_there(home: Path) -> None:
    commit = commits(home)[0]
    content(home, commit)
    left = home / ".busco" / commit[:12] / "left"
    left.touch()
    content(home, commit)
    assert left.exists()


def test_the_most_recently_used_worktrees_are_kept_and_one_in_use_is_never_removed(home: Path) -> None:
    first, second, *others = commits(home)
    with worktrees.checked_out(home, home / ".busco", first) as used:
        for commit in (second, *others):
            content(home, commit)
        assert (used / "file").read_text() == "0"
    content(home, others[-1])
    kept = {folder.name for folder in (home / ".busco").iterdir() if folder.is_dir()}
    assert kept == {commit[:12] for commit in (second, *others)}
    assert git(home, "worktree", "list").count("\n") == len(kept)


def test_a_commit_is_found_only_by_the_beginning_of_its_hash(home: Path, tmp_path: Path) -> None:
    newest = commits(home)[-1]
    assert worktrees.full_commit(home, newest[:12]) == newest
    assert worktrees.full_commit(home, "0123456789ab") is None
    assert worktrees.full_commit(home, "HEAD") is None
    with pytest.raises(BuscoError, match="is not in a git repository"):
        worktrees.full_commit(tmp_path, newest)
