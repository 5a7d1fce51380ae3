"""Set-up for all tests."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """Handles SIGTERM like an interrupt, so that the servers and containers that the tests started are stopped too."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
