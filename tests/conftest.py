"""What holds for all tests."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """A suite that gets SIGTERM ends as an interrupted one does: what it started (servers, containers) ends too."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
