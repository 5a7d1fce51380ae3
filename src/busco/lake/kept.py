"""Keeps the results of expensive listings for a while, so that they take a bounded share of the time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar

_Result = TypeVar("_Result")


@dataclass
class Kept:
    """Results by what they are about. A result is kept for twenty times as long as it took to determine, so that a
    caller that asks again and again spends at most a twentieth of its time on it; but at least for `at_least` seconds,
    and at most for `at_most`. Thread-safe; two threads that ask at once may both determine it.
    """

    at_least: float = 20.0
    at_most: float = 300.0
    _results: dict[Hashable, tuple[float, Any]] = field(default_factory=dict)
    _cleared: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def get(self, what: Hashable, determine: Callable[[], _Result]) -> _Result:
        """Returns the result that is kept, or determines it."""
        with self._lock:
            cleared = self._cleared
            until, result = self._results.get(what, (0.0, None))
        began = time.monotonic()
        if began < until:
            found: _Result = result
            return found
        found = determine()
        ended = time.monotonic()
        pause = min(max(self.at_least, 20 * (ended - began)), self.at_most)
        with self._lock:
            if self._cleared == cleared:  # otherwise it may be outdated already
                # what nobody asks for any more does not accumulate
                self._results = {one: kept for one, kept in self._results.items() if kept[0] > ended}
                self._results[what] = (ended + pause, found)
        return found

    def clear(self) -> None:
        """Forgets everything: what was listed has changed."""
        with self._lock:
            self._results.clear()
            self._cleared += 1
