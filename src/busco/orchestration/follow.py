"""How a task follows a run: which runner's word counts for it, and when one is started.

A task follows the run's shared runner unless that one has already given it a result, or is gone: then a shared runner
is started for what is left, or (cleared, retried, or while another is busy) a runner for this task alone.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

from busco.lake.records import DOCS_NODE, Follower, Result, Runner
from busco.orchestration.watch import Conflict, StartFailed, Watch

_BAD = frozenset({"failed", "error"})


@dataclass(frozen=True)
class Job:
    """What one try of a task is about.

    Attributes:
        task: the task's key within its run: `fct_orders`, `fct_orders.test`, `docs`.
        attempt: Airflow's try number.
        nodes: the unique ids whose results decide it: a model with its unit tests, a model's tests, one joint test.
        along: further ones that a runner started for it alone gives results for: a model's own tests.
        label: how its log names it.
    """

    task: str
    attempt: int
    nodes: tuple[str, ...]
    along: tuple[str, ...]
    label: str


@dataclass(frozen=True)
class Ended:
    """What a task ends with: `text` is its log's first message, `details` the rest."""

    state: str  # success, failed or skipped: Airflow's words
    text: str
    details: str = ""


class Superseded(Exception):
    """A later try of the task follows already."""


class Follow:
    """One try of one task, following one epoch of a run.

    Args:
        restarts: how often the run's shared runner is replaced when it dies.
    """

    def __init__(self, watch: Watch, job: Job, restarts: int) -> None:
        chosen = watch.pin.nodes
        if chosen is not None:
            kept = {*chosen, DOCS_NODE}
            job = replace(
                job,
                nodes=tuple(node for node in job.nodes if node in kept),
                along=tuple(node for node in job.along if node in kept),
            )
        self.watch, self.job, self.restarts = watch, job, restarts
        self.own: Runner | None = None
        self._record = Follower(task=job.task, attempt=job.attempt)
        self._empty_handed = 0
        self._skipped_once = False

    async def run(self) -> Ended:
        """Follows until there is a result.

        Raises:
            Superseded: a later try of this task has begun.
        """
        if not self.job.nodes:
            return Ended("skipped", f"{self.job.label} is not selected in this run (select: {self.watch.pin.select})")
        await self._open()
        while True:
            runner = self.watch.covering(self.job.nodes, self._record.after)
            if runner is None:
                try:
                    await self._start()
                except StartFailed as error:
                    return Ended("failed", f"{self.job.label} failed: its runner could not start\n{error}")
                await self.watch.changed()
                continue
            self.own = runner if runner.kind == "solo" else None
            results = [self.watch.final(node, runner.number) for node in self.job.nodes]
            known = [result for result in results if result is not None]
            if len(known) < len(results) and runner.number not in self.watch.gone:
                await self.watch.changed()
                continue
            complete = len(known) == len(results)
            ended = await self._judge(runner, known) if complete else self._lost(runner)
            if ended is not None:
                await self._save(runner=runner.number)
                return ended
            await self._save(after=runner.number)

    # -- the record of how far this task is ---------------------------------------------------------------------------

    async def _open(self) -> None:
        job = self.job
        while True:
            found = await self.watch.read_follower(job.task)
            record, etag = Follower(task=job.task, attempt=job.attempt), None
            if found is not None:
                known, etag = found
                if known.attempt > job.attempt:
                    raise Superseded
                # the same try again: the triggerer was restarted; a later one: earlier results are not for it
                after = known.after if known.attempt == job.attempt else max(known.after, known.runner)
                again = known.again if known.attempt == job.attempt else known.again or known.runner > 0
                record = record.model_copy(update={"after": after, "again": again})
            try:
                await self.watch.write_follower(record, etag)
            except Conflict:
                continue
            self._record = record
            return

    async def _save(self, **changes: int) -> None:
        found = await self.watch.read_follower(self.job.task)
        if found is None or found[0].attempt > self.job.attempt:
            raise Superseded
        record = self._record.model_copy(update=changes)
        try:
            await self.watch.write_follower(record, found[1])
        except Conflict as error:
            raise Superseded from error
        self._record = record

    # -- runners ------------------------------------------------------------------------------------------------------

    async def _start(self) -> None:
        watch, job = self.watch, self.job
        arguments = ["--run", watch.pin.run, "--epoch", str(watch.pin.epoch)]
        if not self._record.again and not watch.shared_busy():
            await watch.ensure("shared", arguments)
            return
        for node in (*job.nodes, *job.along):
            arguments += ["--node", node]
        arguments += ["--task", job.task, "--attempt", str(job.attempt)]
        if self._record.again:
            arguments.append("--rebuild")
        await watch.ensure(f"{job.task}/{job.attempt}", arguments)

    def _lost(self, runner: Runner) -> Ended | None:
        """A runner is gone without all results: None to go on with another, else the task's end."""
        label, word = self.job.label, self.watch.runner_word(runner.number)
        tail = self.watch.launcher.tail(runner)
        if word is not None and word.status == "error":
            return Ended("failed", f"{label} failed: its runner could not work\n{word.error}", tail)
        self._empty_handed += 1
        many = len(self.watch.died()) > self.restarts or self._empty_handed > self.restarts + 1
        if runner.kind == "solo" or many:
            times = "" if runner.kind == "solo" else f" ({self._empty_handed} runners)"
            return Ended(
                "failed",
                f"{label} failed: its runner ended without a result{times}; it was killed, or ran out of memory\n"
                "  → clear this task: a new runner is started",
                tail,
            )
        return None

    # -- results ------------------------------------------------------------------------------------------------------

    async def _judge(self, runner: Runner, results: list[Result]) -> Ended | None:
        """The task's end by a runner's results; None where dbt skipped it for what was wrong upstream then."""
        logs = await asyncio.gather(*(self.watch.read_log(result.node, runner.number) for result in results))
        details = "\n".join(log.strip() for log in logs if log.strip())
        bad = [result for result in results if result.status in _BAD]
        if bad:
            return Ended("failed", "\n".join(self._blame(result, runner) for result in bad), details)
        skipped = [result for result in results if result.status == "skipped"]
        if skipped:
            if runner.kind == "shared" and not self._skipped_once:
                # for what was wrong upstream then; it is not any more, or this task would not have begun
                self._skipped_once = True
                return None
            return Ended("failed", f"{self.job.label} failed: dbt skipped it: {skipped[0].message}", details)
        return Ended("success", "\n".join(_praise(result) for result in results), details)

    def _blame(self, result: Result, runner: Runner) -> str:
        name = result.node.split(".", 2)[-1]
        lines = [f"{self.job.label} failed: {name}" if name not in self.job.label else f"{self.job.label} failed"]
        lines.append(result.error or result.message or "dbt gave no reason")
        if result.where:
            lines.append(f"at {result.where}")
        lines.append(f"run {self.watch.pin.run}, epoch {self.watch.pin.epoch}, runner {runner.number}")
        if result.status == "failed":
            lines.append("  → the rows don't meet the test: mend the data or the model, then clear the model's task")
        else:
            lines.append("  → mend it, then clear this task (with Downstream): only what is wanting is built")
        return "\n".join(lines)


def _praise(result: Result) -> str:
    name = result.node.split(".", 2)[-1]
    if result.status == "warn":
        return f"warning: {name}: {result.message}"
    said = f"{name}: {'kept as it is' if result.kept else result.message or 'ok'}"
    rows = f", {result.rows} rows" if result.rows is not None else ""
    return f"{said}{rows}, {result.seconds:.1f} s"
