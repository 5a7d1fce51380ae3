"""The heartbeat of a service of our own (`events`, `metrics`), in a file on the service's machine."""

from __future__ import annotations

import json
import logging
import signal
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

log = logging.getLogger(__name__)

BEAT = 10.0  # seconds between two heartbeats
# Seconds without a heartbeat after which a service is not healthy. A look of `metrics`, during which it sends none,
# takes minutes if AWS does not answer.
_SILENT = {"events": 60.0, "metrics": 300.0}


def _file(state: Path, service: str) -> Path:
    return state / "run" / f"{service}.health.json"


@dataclass
class Health:
    """Writes the heartbeats.

    Args:
        state: the platform's state folder.
        service: the service's name.
    """

    state: Path
    service: str
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
        path = _file(self.state, self.service)
        scratch = path.with_name(f".{path.name}")
        try:
            with self._lock:
                path.parent.mkdir(parents=True, exist_ok=True)
                scratch.write_text(json.dumps({"beat": time.time(), "problem": self._problem}))
                scratch.replace(path)
        except OSError as error:
            log.warning("the heartbeat can't be written: %s", error)


def unhealthy(state: Path, service: str) -> str:
    """Returns why a service on this machine is not healthy, or '' if it is.

    A service that can't reach what it needs, such as a queue or an image registry, is healthy: it retries, a restart
    would not help, and a deployment must not be rolled back because of it. `obstacle` returns what it can't reach.
    """
    silent, _ = _read(state, service)
    if silent is None:
        return "it has not started"
    return f"no heartbeat for {silent:.0f} s" if silent > _SILENT[service] else ""


def obstacle(state: Path, service: str) -> str:
    """Returns what prevents a service on this machine from working, as it last reported; '' if nothing does."""
    return _read(state, service)[1]


def _read(state: Path, service: str) -> tuple[float | None, str]:
    """Returns the time since the service's last heartbeat in seconds (None if there was none), and its problem."""
    try:
        found = json.loads(_file(state, service).read_text())
        return time.time() - float(found["beat"]), str(found["problem"])
    except (OSError, ValueError, KeyError, TypeError):
        return None, ""


def stopped() -> threading.Event:
    """Returns an event that SIGTERM and SIGINT set."""
    stop = threading.Event()
    for one in (signal.SIGTERM, signal.SIGINT):
        signal.signal(one, lambda *_: stop.set())
    return stop


def idle(state: Path, service: str) -> None:
    """Does nothing, and reports the service as healthy, until SIGTERM or SIGINT."""
    stop, health = stopped(), Health(state, service)
    while not stop.wait(BEAT):
        health.beat()
