"""Runs `airflow triggerer` without its fixed one-second sleeps, so that a level of the graph adds 0.2 s, not 2 s.

Airflow 2.10's triggerer has two loops: one polls the database, the other runs the triggers. Each sleeps for a second
per iteration, and no setting changes that. A task that starts and ends in the triggerer takes two iterations of the
first loop. Here, the first loop polls five times a second, and the two loops wake each other. It also has Airflow
parse DAG files again when their dbt project has changed (`graph_changes`).
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

from busco.orchestration.graph_changes import GraphChanges
from busco.settings import get_settings

_POLL_EVERY = 0.2  # seconds; a poll makes a few small queries
_CLEAN_EVERY = 5  # polls between two clean-ups of triggers that no task waits for


class _Events(deque[Any]):
    """A queue that sets an event when an item arrives."""

    def __init__(self, arrived: threading.Event) -> None:
        super().__init__()
        self.arrived = arrived

    def append(self, item: Any) -> None:
        super().append(item)
        self.arrived.set()


class PromptTriggerRunner(TriggerRunner):
    """The loop that runs triggers, starting and cancelling each of them as soon as requested."""

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
    """The loop that polls the database, and writes trigger events to it as soon as they occur."""

    trigger_runner: PromptTriggerRunner

    def __init__(self, job: Job, capacity: int | None = None) -> None:
        super().__init__(job, capacity)
        self.trigger_runner = PromptTriggerRunner()
        self.graph_changes = GraphChanges(get_settings())

    def _run_trigger_loop(self) -> None:
        polls = 0
        while not self.trigger_runner.stop:
            if not self.trigger_runner.is_alive():
                self.log.error("Trigger runner thread has died! Exiting.")
                break
            self.trigger_runner.happened.clear()
            self.handle_events()
            self.handle_failed_triggers()
            if polls % _CLEAN_EVERY == 0:
                Trigger.clean_unused()
            self.load_triggers()
            perform_heartbeat(self.job, heartbeat_callback=self.heartbeat_callback, only_if_necessary=True)
            self.emit_metrics()
            self._look_for_changes()
            polls += 1
            self.trigger_runner.happened.wait(_POLL_EVERY)

    def _look_for_changes(self) -> None:
        try:
            files = self.graph_changes.look()
        except Exception:
            # models must be followed even if graphs are not updated
            self.log.exception("changes of DAG files and dbt projects can't be looked for")
        else:
            if files:
                self.log.info("requested a parse of %s", ", ".join(files))


def main() -> None:
    """Runs Airflow's own command line with our triggerer."""
    from airflow.__main__ import main as airflow
    from airflow.cli.commands import triggerer_command

    triggerer_command.TriggererJobRunner = PromptTriggerer  # type: ignore[attr-defined]
    sys.argv = ["airflow", "triggerer", *sys.argv[1:]]
    airflow()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
