"""Finds the runner of one try of a task from the run's records, for the task's links."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from busco.lake.layout import file_slug
from busco.lake.records import DOCS_NODE, FINAL, RUNNER_NODE, Ending, Follower, Order, Result, Runner
from busco.lake.runs import Run
from busco.orchestration.follow import SHARED

_TESTS = "tests/"  # the prefix of the names of orders for joint tests (watch.py)


@dataclass(frozen=True)
class Whereabouts:
    """The runner of one try of a task.

    Attributes:
        runner: the runner whose results count for the try, or will count; None if there is none yet.
        ending: how that runner ended, if it was found to be gone.
        report: that runner's final report on itself; None if it has not written one.
        order: the order for the task's runner, if no runner has registered yet.
        results: the runner's results for the task's nodes so far.
        is_selected: whether the run selects any of the task's nodes.
    """

    runner: Runner | None = None
    ending: Ending | None = None
    report: Result | None = None
    order: Order | None = None
    results: tuple[Result, ...] = ()
    is_selected: bool = True


def whereabouts(run: Run, task: str, nodes: Sequence[str], attempt: int) -> Whereabouts:
    """Finds the runner of a task's try, with a small number of reads that does not depend on the graph's size.

    Args:
        task: the task's key within its run.
        nodes: the unique ids whose results determine the task's state.
        attempt: Airflow's try number.
    """
    chosen = run.pin.nodes
    nodes = [node for node in nodes if chosen is None or node in chosen or node == DOCS_NODE]
    if not nodes:
        return Whereabouts(is_selected=False)
    return _Search(run, task, nodes, attempt).found()


class _Search:
    def __init__(self, run: Run, task: str, nodes: Sequence[str], attempt: int) -> None:
        self.run, self.task, self.nodes, self.attempt = run, task, nodes, attempt
        self.follower = run.store.read(run.layout.follower(task), Follower)
        self.all = run.runners()
        self.endings = run.endings()
        self.mine = [runner for runner in self.all if self._counts(runner)]
        wanted = [(node, runner.number) for runner in self.mine for node in (*nodes, RUNNER_NODE)]
        self.results = {
            key: result for key in wanted if (result := run.store.read(run.layout.result(*key), Result)) is not None
        }

    def found(self) -> Whereabouts:
        runner = self._used() or self._active()
        if runner is None:
            order = self._ordered()
            if order is not None:
                return Whereabouts(order=order)
            runner = self._last()
        if runner is None:
            return Whereabouts()
        found = (self.results.get((node, runner.number)) for node in self.nodes)
        report = self.results.get((RUNNER_NODE, runner.number))
        return Whereabouts(
            runner=runner,
            ending=self.endings.get(runner.number),
            report=report if report is not None and report.status in FINAL else None,
            results=tuple(result for result in found if result is not None),
        )

    def _counts(self, runner: Runner) -> bool:
        """Whether a runner's results count for this try, according to the follower's record (follow.py)."""
        known = self.follower
        if runner.kind == "solo" and runner.task == self.task:
            return runner.attempt == self.attempt
        if known is None:
            return True
        if known.attempt > self.attempt:
            return runner.number <= known.after
        after = known.after if known.attempt == self.attempt else max(known.after, known.runner)
        return runner.number > after

    def _used(self) -> Runner | None:
        """Returns the runner whose result this try used."""
        known = self.follower
        number = known.runner if known is not None and known.attempt == self.attempt else 0
        return next((runner for runner in self.mine if runner.number == number), None)

    def _active(self) -> Runner | None:
        """Returns the newest runner that is not known to be gone, preferably one that has already reached the task."""
        living = [runner for runner in reversed(self.mine) if runner.number not in self.endings]
        reached = [runner for runner in living if self._reached(runner)]
        return next(iter([*reached, *(runner for runner in living if self._covers(runner))]), None)

    def _last(self) -> Runner | None:
        """Returns the newest runner that reached the task or, if none did, the newest one that should have."""
        reached = [runner for runner in reversed(self.mine) if self._reached(runner)]
        return next(iter([*reached, *(runner for runner in reversed(self.mine) if self._covers(runner))]), None)

    def _reached(self, runner: Runner) -> bool:
        found = (self.results.get((node, runner.number)) for node in self.nodes)
        return any(result is not None and result.status != "skipped" and not result.fenced for result in found)

    def _covers(self, runner: Runner) -> bool:
        """Whether a runner reports, or should have reported, results for the task's nodes."""
        if runner.kind == "solo":
            return any(node in runner.nodes for node in self.nodes)
        report = self.results.get((RUNNER_NODE, runner.number))
        if report is None or report.plan is None:
            # the runner has not reported its plan yet, or ended before reporting it
            return report is None or report.status in FINAL
        return any(node in report.plan for node in self.nodes)

    def _ordered(self) -> Order | None:
        """Returns an order for the task whose runner has not registered, preferably one that is not shared."""
        if self.follower is not None and self.follower.attempt > self.attempt:
            return None
        layout = self.run.layout
        names = [f"{layout.orders}{file_slug(name)}/" for name in (SHARED, f"{self.task}/{self.attempt}")]
        gathered = f"{layout.orders}{file_slug(_TESTS)}"
        keys = [key for key in self.run.store.keys(layout.orders) if key.startswith((*names, gathered))]
        newest: dict[str, Order] = {}
        for order in self.run.store.read_many(keys, Order):
            if order.kind == "shared" or any(node in order.nodes for node in self.nodes):
                newest[order.name] = max(order, newest.get(order.name, order), key=lambda one: one.generation)
        registered = {(runner.order, runner.generation) for runner in self.all}
        waiting = [order for order in newest.values() if (order.name, order.generation) not in registered]
        return max(waiting, key=lambda order: order.kind == "solo", default=None)
