"""Runners that hang: they have written heartbeats, and write none any more."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

# Seconds that count between two looks at most: while S3 could not be read, it may not have been writable either, and a
# machine that slept has heard nothing.
_GAP = 2.0


@dataclass
class Silence:
    """How long each runner has given no sign of life, by this process's clock: clocks of two machines may differ.

    Args:
        limit: seconds; 0 is none.
    """

    limit: float
    clock: Callable[[], float] = time.monotonic
    _known: dict[int, tuple[str, float]] = field(default_factory=dict)
    _looked_at: float | None = None

    def hear(self, beats: Mapping[int, str]) -> list[int]:
        """A look at the heartbeats.

        Args:
            beats: the ETag of the heartbeat of each runner that lives; one that has never written any is not judged.

        Returns those that have been silent for the limit since they were heard, or named here, last.
        """
        now = self.clock()
        passed = 0.0 if self._looked_at is None else min(now - self._looked_at, _GAP)
        self._looked_at = now
        found = []
        for number, etag in beats.items():
            known, silent = self._known.get(number, ("", 0.0))
            silent = silent + passed if etag == known else 0.0
            if 0 < self.limit <= silent:
                found.append(number)
                silent = 0.0
            self._known[number] = (etag, silent)
        return found
