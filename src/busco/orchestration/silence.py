"""Detects hung runners: those that have stopped sending heartbeats."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

# The maximum number of seconds that the gap between two polls adds to a silence. A longer gap proves nothing: while
# this process can't read from S3, runners may be unable to write to it, and a suspended machine sees no heartbeats.
_GAP = 2.0


@dataclass
class Silence:
    """Tracks how long each runner has been silent, by this process's clock, since two machines' clocks may differ.

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
            beats: the ETag of each living runner's heartbeat; runners that have never written a heartbeat are left out.

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
