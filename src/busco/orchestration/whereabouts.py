"""Which runner one try of a task is at, by the run's records: what the task's links lead to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from busco.lake.layout import file_slug
from busco.lake.records import DOCS_NODE, FINAL, RUNNER_NODE, Ending, Follower, Order, Result, Runner
from busco.lake.runs import Run
from busco.orchestration.follow import SHARED

_TESTS = "tests/"  # orders for tests over several models (watch.py)


@dataclass(frozen=True)
class Whereabouts:
    """Where a try of a task is.

    Attributes:
        runner: the one whose word counts for it, or will; None while there is none.
        ending: how that one has ended, if it was seen gone.
        word: what that one said of itself at its end; None where it did not get there, or not yet.
        order: what was ordered for the task where no runner has registered itself yet.
        results: the runner's word on the task's nodes so far.
        is_selected: the run has something to do for the task at all.
    """

    runner: Runner | None = None
    ending: Ending | None = None
    word: Result | None = None
    order: Order | None = None
    results: tuple[Result, ...] = ()
    is_selected: bool = True


def whereabouts(run: Run, task: str, nodes: Sequence[str], attempt: int) -> Whereabouts:
    """Where a try of a task is; a handful of reads, whatever the size of the graph.

    Args:
        task: the task's key within its run.
        nodes: the unique ids whose results decide it.
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
        runner = self._taken() or self._at_work()
        if runner is None:
            order = self._ordered()
            if order is not None:
                return Whereabouts(order=order)
            runner = self._last()
        if runner is None:
            return Whereabouts()
        said = (self.results.get((node, runner.number)) for node in self.nodes)
        word = self.results.get((RUNNER_NODE, runner.number))
        return Whereabouts(
            runner=runner,
            ending=self.endings.get(runner.number),
            word=word if word is not None and word.status in FINAL else None,
            results=tuple(result for result in said if result is not None),
        )

    def _counts(self, runner: Runner) -> bool:
        """Whether a runner is one for this try, by what its follower has written down (follow.py)."""
        known = self.follower
        if runner.kind == "solo" and runner.task == self.task:
            return runner.attempt == self.attempt
        if known is None:
            return True
        if known.attempt > self.attempt:
            return runner.number <= known.after
        after = known.after if known.attempt == self.attempt else max(known.after, known.runner)
        return runner.number > after

    def _taken(self) -> Runner | None:
        """The runner whose result this try has taken."""
        known = self.follower
        number = known.runner if known is not None and known.attempt == self.attempt else 0
        return next((runner for runner in self.mine if runner.number == number), None)

    def _at_work(self) -> Runner | None:
        """The newest that is not known to be gone: one that has come to the task before one that is to come to it."""
        living = [runner for runner in reversed(self.mine) if runner.number not in self.endings]
        reached = [runner for runner in living if self._reached(runner)]
        return next(iter([*reached, *(runner for runner in living if self._covers(runner))]), None)

    def _last(self) -> Runner | None:
        """The newest of those that are gone: one that had come to the task, else one that was to."""
        reached = [runner for runner in reversed(self.mine) if self._reached(runner)]
        return next(iter([*reached, *(runner for runner in reversed(self.mine) if self._covers(runner))]), None)

    def _reached(self, runner: Runner) -> bool:
        said = (self.results.get((node, runner.number)) for node in self.nodes)
        return any(result is not None and result.status != "skipped" and not result.fenced for result in said)

    def _covers(self, runner: Runner) -> bool:
        """Whether it gives, or was to give, results for the task's nodes."""
        if runner.kind == "solo":
            return any(node in runner.nodes for node in self.nodes)
        word = self.results.get((RUNNER_NODE, runner.number))
        if word is None or word.plan is None:
            # before it has said what it will do; one that has ended so did nothing
            return word is None or word.status in FINAL
        return any(node in word.plan for node in self.nodes)

    def _ordered(self) -> Order | None:
        """The newest order of a runner for the task, if that one has not registered itself."""
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
