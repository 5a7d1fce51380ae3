"""Decides, for a task that follows a run, which runners' results count, and when the task orders a new runner.

A task follows the run's shared runner, unless that runner is gone or an earlier try of the task has already used the
runner's result. In those cases, the task orders a new runner. If the task was cleared or retried, or a shared runner is
busy, the new runner is for this task alone; otherwise, it is another shared runner for the remaining work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from busco.lake.records import DOCS_NODE, Follower, Order, Result, Runner
from busco.orchestration.async_aws import Conflict
from busco.orchestration.launch import Say
from busco.orchestration.watch import StartFailed, Watch
from busco.settings import SIZES

# the name of the order for the run's shared runner
SHARED = "shared"
_BAD = frozenset({"failed", "error"})
# how a runner's message about a node that it skipped begins; the reason follows (dbt gives none)
_SKIPPED = "skipped: "


@dataclass(frozen=True)
class Job:
    """The work of one try of a task.

    Attributes:
        task: the task's key within its run: `fct_orders`, `fct_orders.test`, `docs`.
        attempt: Airflow's try number.
        nodes: the unique ids whose results determine the task's state: a model with its unit tests, a model's tests, or
            one joint test.
        along: the unique ids of other nodes that a runner for this task alone also runs: a model's own tests.
        label: the task's name in its log.
        size: the size of an ECS task started for this task alone; '' means BUSCO_ECS_SIZE.
        joint: whether the task is a joint test; if each model has its own runner, joint tests share one.
    """

    task: str
    attempt: int
    nodes: tuple[str, ...]
    along: tuple[str, ...]
    label: str
    size: str = ""
    joint: bool = False

    @property
    def slot(self) -> str:
        """This try's name, both as a follower and in the order for a runner of its own."""
        return f"{self.task}/{self.attempt}"


@dataclass(frozen=True)
class Ended:
    """How a task ends: `text` is the first message in its log, `details` the rest."""

    state: str  # an Airflow state: success, failed or skipped
    text: str
    details: str = ""


class Superseded(Exception):
    """A later try of the task is already following the run."""


class Follow:
    """One try of one task, following one epoch of a run.

    Args:
        restarts: how many times a lost runner is replaced.
        per_model: whether each model has its own runner, instead of one shared runner for the run.
        say: called with a line for the task's log, such as what the task waits for.
    """

    def __init__(
        self, watch: Watch, job: Job, restarts: int, per_model: bool = False, say: Say = lambda _: None
    ) -> None:
        chosen = watch.pin.nodes
        if chosen is not None:
            kept = {*chosen, DOCS_NODE}
            job = replace(
                job,
                nodes=tuple(node for node in job.nodes if node in kept),
                along=tuple(node for node in job.along if node in kept),
            )
        self.watch, self.job, self.restarts = watch, job, restarts
        self.per_model, self.say = per_model, say
        self._record = Follower(task=job.task, attempt=job.attempt)
        self._lost: list[int] = []

    async def run(self) -> Ended:
        """Follows the run until this try ends, and returns how it ended.

        Raises:
            Superseded: a later try of this task has started.
        """
        if not self.job.nodes:
            return Ended("skipped", f"{self.job.label} is not selected in this run (select: {self.watch.pin.select})")
        await self._open()
        while True:
            results = {node: self._result(node) for node in self.job.nodes}
            known = [result for result in results.values() if result is not None]
            if len(known) == len(results):
                await self._save(max(result.runner for result in known))
                return await self._judge(known)
            missing = [node for node, result in results.items() if result is None]
            runner = self._covering(missing)
            is_living = runner is not None and not self.watch.gone(runner.number)
            self.watch.followers[self.slot] = runner.number if runner is not None and is_living else 0
            if runner is None:
                try:
                    await self._start()
                except StartFailed as error:
                    return Ended("failed", f"{self.job.label} failed: its runner could not start\n{error}")
                await self.watch.changed()
            elif is_living:
                await self.watch.changed()
            else:
                ended = await self._on_lost(runner)
                if ended is not None:
                    await self._save(runner.number)
                    return ended

    # -- which runner's results count ---------------------------------------------------------------------------------

    def _counts(self, number: int) -> bool:
        """Whether a runner's results count for this try.

        Two kinds of runners don't count: those that are no newer than a runner whose result an earlier try used, and
        those that were started for an earlier try alone.
        """
        runner = self.watch.runners[number]
        earlier = runner.kind == "solo" and runner.task == self.job.task and runner.attempt < self.job.attempt
        return number > self._record.after and not earlier

    def _result(self, node: str) -> Result | None:
        """Returns a node's first final result from a runner that counts for this try."""
        for number in sorted(self.watch.runners):
            result = self.watch.final(node, number) if self._counts(number) else None
            if result is None:
                continue
            if result.status == "skipped" and number <= self._newest_before and not self._failed_in(number):
                # ignore a skip caused by an upstream failure that has since been fixed; otherwise, this task would
                # never run
                continue
            return result
        return None

    def _failed_in(self, number: int) -> bool:
        """Whether one of this task's own nodes failed in a runner.

        For example, if a unit test fails, the runner skips the model.
        """
        found = (self.watch.final(node, number) for node in self.job.nodes)
        return any(result is not None and result.status in _BAD for result in found)

    def _covering(self, nodes: Sequence[str]) -> Runner | None:
        """Returns the first runner that reports, or should have reported, results for all of `nodes`."""
        for number in sorted(self.watch.runners):
            if number in self._lost or not self._counts(number):
                continue
            skipped = any(
                (known := self.watch.results.get((node, number))) and known.status == "skipped" for node in nodes
            )
            if not skipped and all(self.watch.covers(number, node) for node in nodes):
                return self.watch.runners[number]
        return None

    # -- the record of this task's progress ---------------------------------------------------------------------------

    async def _open(self) -> None:
        """Writes this try's record, based on an earlier try's record if there is one.

        If the triggerer was restarted during this try, this method instead reads the record that the try started with.

        Raises:
            Superseded: a later try of this task has started.
        """
        job, watch = self.job, self.watch
        began = {
            "before": max(watch.runners, default=0),
            "past": tuple(sorted(watch.endings)),
            "orders": {order.name: order.generation for order in watch.orders.values() if not order.task},
        }
        while True:
            found = await watch.read_follower(job.task)
            record = Follower(task=job.task, attempt=job.attempt).model_copy(update=began)
            known, etag = found or (None, None)
            if known is not None and known.attempt > job.attempt:
                raise Superseded
            if known is not None and known.attempt == job.attempt:
                # a record from an older version of the platform lacks the state at the start of the try
                record = known if known.before is not None else known.model_copy(update=began)
            elif known is not None:
                # results that earlier tries used don't count for this one
                after, again = max(known.after, known.runner), known.again or known.runner > 0
                record = record.model_copy(update={"after": after, "again": again})
            if record != known:
                try:
                    await watch.write_follower(record, etag)
                except Conflict:
                    continue
            self._record = record
            return

    @property
    def _newest_before(self) -> int:
        """The number of the newest runner when this try started; 0 if there was none."""
        return self._record.before or 0

    @property
    def _ordered_before(self) -> Mapping[str, int]:
        """The newest generation of each order for several tasks when this try started, by the order's name."""
        return self._record.orders

    @property
    def _past(self) -> frozenset[int]:
        """The runners that were gone when this try started: their unfinished work must not fail this try."""
        return frozenset(self._record.past)

    async def _save(self, runner: int) -> None:
        """Records which runner's result this try used."""
        record = self._record.model_copy(update={"runner": runner})
        while True:
            found = await self.watch.read_follower(self.job.task)
            if found is None or found[0].attempt > self.job.attempt:
                raise Superseded
            try:
                await self.watch.write_follower(record, found[1])
            except Conflict:
                # another process wrote the record: a later try, or the same try in another triggerer
                continue
            self._record = record
            return

    # -- runners ------------------------------------------------------------------------------------------------------

    async def _start(self) -> None:
        watch, job = self.watch, self.job
        alone = self._record.again or bool(self._out_of_memory())
        if not alone and self.per_model and job.joint:
            await watch.gather(job.nodes[0], self._size(), self.say, self._ordered_before, self.slot)
        elif alone or self.per_model or watch.shared_busy() or self._left_out():
            order = Order(
                name=self.slot,
                generation=0,
                kind="solo",
                nodes=(*job.nodes, *job.along),
                task=job.task,
                attempt=job.attempt,
                rebuild=self._record.again,
                size=self._size(),
            )
            await watch.ensure(order, self.say, self._ordered_before, self.slot)
        else:
            order = Order(name=SHARED, generation=0, kind="shared", size=watch.settings.ecs_size)
            await watch.ensure(order, self.say, self._ordered_before, self.slot)

    def _size(self) -> str:
        """Returns the size of a runner for this task alone: the next larger size if the task ran out of memory."""
        size: str = self.job.size or self.watch.settings.ecs_size
        for number in self._out_of_memory():
            size = max(size, _next(self.watch.runners[number].size) or size, key=_rank)
        return size

    def _out_of_memory(self) -> list[int]:
        """Returns the numbers of the runners that ran out of memory while running this task."""
        return [
            number
            for number, ending in sorted(self.watch.endings.items())
            if ending.out_of_memory
            and number in self.watch.runners
            and self._counts(number)
            and any(self.watch.running(node, number) for node in self.job.nodes)
        ]

    @property
    def slot(self) -> str:
        return self.job.slot

    def _left_out(self) -> bool:
        """Whether a shared runner that started after this try leaves out a node of this task.

        A shared runner considers a node done if the node has a result, even one that doesn't count for this try.
        """
        shared = [n for n, r in self.watch.runners.items() if n > self._newest_before and r.kind == "shared"]
        return any(not all(self.watch.covers(n, node) for node in self.job.nodes) for n in shared)

    async def _on_lost(self, runner: Runner) -> Ended | None:
        """Handles a runner that ended before it reported all results.

        Returns:
            how the task ends, or None to continue with another runner.
        """
        self._lost.append(runner.number)
        heavy = self._out_of_memory()
        if runner.number in self._past and runner.number not in heavy:
            return None
        label, own, ending = self.job.label, self.watch.runner_word(runner.number), self.watch.endings[runner.number]
        if own is not None and own.status == "error":
            tail = await self.watch.tail(runner)
            return Ended("failed", f"{label} failed: its runner reported an error\n{own.error}", tail)
        if runner.number in heavy:
            larger = _next(runner.size)
            if len(heavy) == 1 and larger:
                self.say(f"{ending.reason}; starting a runner of size {larger} for {label} alone")
                return None
            hint = "  → give the model more memory (meta: {ecs: large}), or make its query use less"
        else:
            times = len([number for number in self._lost if number not in self._past])
            if times <= self.restarts and (runner.kind == "shared" or ending.passing):
                self.say(f"runner {runner.number} is gone: {ending.reason}; another runner will take over")
                return None
            hint = f"  → {ending.hint or 'clear this task to start a new runner'}"
        runners = f" (the last of {len(self._lost)} runners)" if len(self._lost) > 1 else ""
        return Ended(
            "failed",
            f"{label} failed: its runner ended without a result{runners}\n{ending.reason}\n{hint}",
            await self.watch.tail(runner),
        )

    # -- results ------------------------------------------------------------------------------------------------------

    async def _judge(self, results: list[Result]) -> Ended:
        """Returns how the task ends, according to its nodes' results."""
        logs = await asyncio.gather(*(self.watch.read_log(result.node, result.runner) for result in results))
        details = "\n".join(log.strip() for log in logs if log.strip())
        bad = [result for result in results if result.status in _BAD]
        if bad:
            return Ended("failed", "\n".join(self._blame(result) for result in bad), details)
        skipped = [result for result in results if result.status == "skipped"]
        if skipped:
            return Ended(
                "failed",
                f"{self.job.label} failed: {_why_skipped(skipped[0])}\n"
                "  → fix and clear the upstream task that failed (marking it as success is not enough)",
                details,
            )
        return Ended("success", "\n".join(_praise(result) for result in results), details)

    def _blame(self, result: Result) -> str:
        name = result.node.split(".", 2)[-1]
        lines = [f"{self.job.label} failed: {name}" if name not in self.job.label else f"{self.job.label} failed"]
        lines.append(result.error or result.message or "dbt gave no reason")
        if result.where:
            lines.append(f"at {result.where}")
        lines.append(f"run {self.watch.pin.run}, epoch {self.watch.pin.epoch}, runner {result.runner}")
        if result.status == "failed":
            lines.append("  → fix the data or the model so that its rows pass the test, then clear the model's task")
        else:
            lines.append("  → fix the error, then clear this task with Downstream; only missing results are rebuilt")
        return "\n".join(lines)


def _why_skipped(result: Result) -> str:
    reason = result.message.removeprefix(_SKIPPED)
    if not reason:
        return "it was skipped"
    return f"it was skipped{' because' if reason != result.message else ':'} {reason}"


def _praise(result: Result) -> str:
    name = result.node.split(".", 2)[-1]
    if result.status == "warn":
        return f"warning: {name}: {result.message}"
    outcome = f"{name}: {'kept' if result.kept else result.message or 'ok'}"
    rows = f", {result.rows} rows" if result.rows is not None else ""
    return f"{outcome}{rows}, {result.seconds:.1f} s"


def _rank(size: str) -> int:
    return SIZES.index(size) if size in SIZES else -1


def _next(size: str) -> str:
    """Returns the next larger size; '' for the largest, and for a runner without a size."""
    rank = _rank(size)
    return SIZES[rank + 1] if 0 <= rank < len(SIZES) - 1 else ""
