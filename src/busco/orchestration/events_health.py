"""The heartbeat of the events service, in a file on the service's machine."""

from __future__ import annotations

import json
import logging
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

log = logging.getLogger(__name__)

BEAT = 10.0  # seconds between two heartbeats
_SILENT = 60.0  # seconds without a heartbeat after which the service is not healthy


def _file(state: Path) -> Path:
    return state / "run" / "events.health.json"


@dataclass
class Health:
    """Writes the heartbeats.

    Args:
        state: the platform's state folder.
    """

    state: Path
    _problem: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.beat()

    def problem(self, text: str) -> None:
        """Records what prevents the service from working; '' if nothing does."""
        self._problem = text
        self.beat()

    def beat(self) -> None:
        """Writes a heartbeat. If it can't be written (for example, because the disk is full), this is logged, and
        `unhealthy` reports the missing heartbeat."""
        path = _file(self.state)
        scratch = path.with_name(f".{path.name}")
        try:
            with self._lock:
                path.parent.mkdir(parents=True, exist_ok=True)
                scratch.write_text(json.dumps({"beat": time.time(), "problem": self._problem}))
                scratch.replace(path)
        except OSError as error:
            log.warning("the heartbeat can't be written: %s", error)


def unhealthy(state: Path) -> str:
    """Returns why the service on this machine is not healthy, or '' if it is."""
    try:
        found = json.loads(_file(state).read_text())
        silent, problem = time.time() - float(found["beat"]), str(found["problem"])
    except (OSError, ValueError, KeyError, TypeError):
        return "it has not started"
    return f"no heartbeat for {silent:.0f} s" if silent > _SILENT else problem
