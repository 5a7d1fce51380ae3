"""Runs the `busco` command in the test's own process."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from busco.cli.main import main
from busco.settings import get_settings

Command = Callable[..., tuple[int, str]]


def in_process(capfd: pytest.CaptureFixture[str]) -> Command:
    """Returns the command as a function: arguments → exit status and the output of both streams."""

    def run(*arguments: str) -> tuple[int, str]:
        get_settings.cache_clear()
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        printed = capfd.readouterr()
        return int(ended.value.code or 0), printed.out + printed.err

    return run
