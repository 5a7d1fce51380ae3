"""`airflow triggerer` without its fixed second of sleep between two looks: a level of tasks costs 0.2 s, not 2 s.

Airflow 2.10's triggerer has two loops, one over the database and one that runs the triggers, and each sleeps for a
second a turn; no setting changes that. A task that starts and ends in the triggerer takes two turns of the first. Here
the first looks five times a second, and the two wake each other.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections import deque
from typing import Any

from airflow.jobs.job import Job, perform_heartbeat
from airflow.jobs.triggerer_job_runner import TriggererJobRunner, TriggerRunner
from airflow.models.trigger import Trigger

_LOOK_EVERY = 0.2  # seconds; a look is a few small queries
_CLEAN_EVERY = 5  # looks between two clean-ups of triggers that no task waits for any more


class _Events(deque[Any]):
    """A queue that says when something came in."""

    def __init__(self, came_in: threading.Event) -> None:
        super().__init__()
        self.came_in = came_in

    def append(self, item: Any) -> None:
        super().append(item)
        self.came_in.set()


class PromptTriggerRunner(TriggerRunner):
    """The loop that runs triggers: starts and cancels them as soon as it is told to."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.happened = threading.Event()
        self.events = _Events(self.happened)
        self.failed_triggers = _Events(self.happened)
        self.loop: asyncio.AbstractEventLoop | None = None

    async def arun(self) -> None:
        self.loop = asyncio.get_running_loop()
        await super().arun()  # type: ignore[no-untyped-call]

    def update_triggers(self, requested_trigger_ids: set[int]) -> None:
        super().update_triggers(requested_trigger_ids)
        if self.loop is not None and self.loop.is_running() and (self.to_create or self.to_cancel):
            asyncio.run_coroutine_threadsafe(self._catch_up(), self.loop)

    async def _catch_up(self) -> None:
        await self.create_triggers()  # type: ignore[no-untyped-call]
        await self.cancel_triggers()  # type: ignore[no-untyped-call]


class PromptTriggerer(TriggererJobRunner):
    """The loop over the database: what a trigger said is written down at once."""

    trigger_runner: PromptTriggerRunner

    def __init__(self, job: Job, capacity: int | None = None) -> None:
        super().__init__(job, capacity)
        self.trigger_runner = PromptTriggerRunner()

    def _run_trigger_loop(self) -> None:
        looks = 0
        while not self.trigger_runner.stop:
            if not self.trigger_runner.is_alive():
                self.log.error("Trigger runner thread has died! Exiting.")
                break
            self.trigger_runner.happened.clear()
            self.handle_events()
            self.handle_failed_triggers()
            if looks % _CLEAN_EVERY == 0:
                Trigger.clean_unused()
            self.load_triggers()
            perform_heartbeat(self.job, heartbeat_callback=self.heartbeat_callback, only_if_necessary=True)
            self.emit_metrics()
            looks += 1
            self.trigger_runner.happened.wait(_LOOK_EVERY)


def main() -> None:
    """Airflow's own command line, with our triggerer in place of its."""
    from airflow.__main__ import main as airflow
    from airflow.cli.commands import triggerer_command

    triggerer_command.TriggererJobRunner = PromptTriggerer  # type: ignore[attr-defined]
    sys.argv = ["airflow", "triggerer", *sys.argv[1:]]
    airflow()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
