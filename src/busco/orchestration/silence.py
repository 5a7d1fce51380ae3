"""Detects hung runners: those that have written heartbeats and then stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

# The most seconds that count between two polls: while S3 could not be read, it may not have been writable either, and
# heartbeats go unseen while this machine is suspended.
_GAP = 2.0


@dataclass
class Silence:
    """Tracks how long each runner has been silent, by this process's clock, as the clocks of two machines may differ.

    Args:
        limit: seconds of silence after which a runner counts as hung; 0 disables the check.
    """

    limit: float
    clock: Callable[[], float] = time.monotonic
    _known: dict[int, tuple[str, float]] = field(default_factory=dict)
    _looked_at: float | None = None

    def hear(self, beats: Mapping[int, str]) -> list[int]:
        """Processes one poll of the heartbeats.

        Args:
            beats: the ETag of each living runner's heartbeat, without runners that have never written one.

        Returns:
            the runners that have been silent for `limit` seconds since their last heartbeat, or since they were last
            returned here.
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
