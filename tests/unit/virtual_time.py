"""Runs coroutines in simulated time: the clock jumps to the next scheduled event, so waiting takes no real time."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time advances only when no callback is ready. Tasks must not wait for threads or sockets."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 1000.0

    def time(self) -> float:
        return self._now

    def _run_once(self) -> None:
        if not self._ready:  # type: ignore[attr-defined]
            scheduled: list[Any] = self._scheduled  # type: ignore[attr-defined]
            self._now = max(self._now, min((timer.when() for timer in scheduled if not timer.cancelled()), default=0.0))
        super()._run_once()  # type: ignore[misc]


def simulate(story: Coroutine[Any, Any, Result]) -> Result:
    """Runs a coroutine in simulated time and returns its result."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(story)
