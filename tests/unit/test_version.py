"""`busco --version`: the version of the platform and, where it is known, the commit of its code."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from busco import __version__
from busco.settings import get_settings
from tests.command import Command, in_process


@pytest.fixture
def busco(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """Runs the command in this process, with a home folder outside of git."""
    monkeypatch.setenv("BUSCO_HOME", str(tmp_path))
    monkeypatch.delenv("BUSCO_CODE_VERSION", raising=False)
    yield in_process(capfd)
    get_settings.cache_clear()


def test_the_version_includes_the_commit_where_it_is_known(busco: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    assert busco("--version") == (0, f"busco {__version__}\n")
    monkeypatch.setenv("BUSCO_CODE_VERSION", "abc123+")
    assert busco("--version") == (0, f"busco {__version__} (commit abc123+)\n")


def test_the_version_is_printed_even_if_a_setting_is_invalid(busco: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUSCO_PLATFORM", "nowhere")
    assert busco("--version") == (0, f"busco {__version__}\n")
