"""Coroutines in simulated time: the loop's clock jumps to whatever is next, so that hours of waiting cost nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

Answer = TypeVar("Answer")


class VirtualLoop(asyncio.SelectorEventLoop):
    """Its time stands still while anything can run. Nothing in it may wait for a thread or a socket."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 1000.0

    def time(self) -> float:
        return self._now

    def _run_once(self) -> None:
        if not self._ready:  # type: ignore[attr-defined]
            scheduled: list[Any] = self._scheduled  # type: ignore[attr-defined]
            self._now = max(self._now, min((one.when() for one in scheduled if not one.cancelled()), default=0.0))
        super()._run_once()  # type: ignore[misc]


def simulate(story: Coroutine[Any, Any, Answer]) -> Answer:
    """Runs a coroutine in simulated time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(story)
