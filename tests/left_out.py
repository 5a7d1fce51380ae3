"""Skips the tests of a folder, with a message, if something that they need is missing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest


def leave_out(items: Iterable[pytest.Item], conftest: str, missing: Callable[[], str]) -> None:
    """Skips the tests beside or below a conftest file if something is missing.

    Args:
        items: the tests that pytest has collected.
        conftest: the conftest file, `__file__`.
        missing: returns what is missing, or an empty text; called only if there are such tests.
    """
    ours = [item for item in items if Path(conftest).parent in item.path.parents]
    if ours and (reason := missing()):
        for item in ours:
            item.add_marker(pytest.mark.skip(reason=reason))
