"""What holds for all tests."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """A suite that gets SIGTERM ends as one that is interrupted does: servers and containers that it started end too."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
