"""Tests of a folder that are left out, with a word, where what they need is missing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest


def leave_out(items: Iterable[pytest.Item], conftest: str, missing: Callable[[], str]) -> None:
    """Skips the tests beside or below a conftest file, if something is missing.

    Args:
        items: what pytest has collected.
        conftest: the file, `__file__`.
        missing: says what is missing, empty if nothing; asked only where there are such tests.
    """
    ours = [item for item in items if Path(conftest).parent in item.path.parents]
    if ours and (reason := missing()):
        for item in ours:
            item.add_marker(pytest.mark.skip(reason=reason))
