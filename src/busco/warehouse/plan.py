"""What a shared runner has to do: nodes without a result that still holds, and those that a failure blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from busco.lake.records import DOCS_NODE, FINAL, RUNNER_NODE, Ending, Entry, Result, Runner
from busco.lake.runs import Run, visible_versions
from busco.processes import process_alive
from busco.project import Project

_BAD = frozenset({"failed", "error"})


@dataclass(frozen=True)
class Plan:
    """`nodes` are built and tested, and DOCS_NODE described; `blocked` are not, each with the name of what has failed
    before it. All are dbt unique ids."""

    nodes: tuple[str, ...]
    blocked: Mapping[str, str]

    @property
    def all(self) -> tuple[str, ...]:
        """Everything that the runner gives a result for."""
        return (*self.nodes, *self.blocked)


def plan(run: Run, project: Project, elsewhere: frozenset[str] = frozenset()) -> Plan:
    """What is left of a run.

    Done is what has a final result for what is in the run now: a test that passed on a version which was built anew
    since is to do, and so is a model that was made from one. What failed is done too: building it anew is for whoever
    clears its task.

    Args:
        elsewhere: nodes that are for other runners (`for_other_runners`); they and what lies below them are left out.
    """
    latest = run.latest_results()
    entries = run.entries()
    visible = {table: version.version for table, version in visible_versions(run, run.base(), entries).items()}
    failed = _failed_models(project, latest)
    left = [
        node
        for node in buildable(project)
        if (run.pin.nodes is None or node in run.pin.nodes)
        and node not in failed
        and not (node in latest and _holds(project, latest[node], entries, visible))
        and not _upstream(project, node) & elsewhere
        and node not in elsewhere
    ]
    failed_tests = [test for test in project.tests if test in latest and latest[test].status in _BAD]
    failed_tests = [test for test in failed_tests if test not in left]
    blocked: dict[str, str] = {}
    for node in left:
        for model in sorted(_upstream(project, node) & failed.keys()):
            blocked.setdefault(node, failed[model])
        for test in failed_tests:
            if project.unit_tests.get(node, node) in project.gates[test]:
                blocked.setdefault(node, str(project.tests[test]["name"]))
    nodes = [node for node in left if node not in blocked]
    # a unit test comes with its model, each time
    chosen = set(nodes)
    nodes += [
        unit
        for unit, model in project.unit_tests.items()
        if model in chosen and unit not in chosen and (run.pin.nodes is None or unit in run.pin.nodes)
    ]
    docs = latest.get(DOCS_NODE)
    if not elsewhere and not (docs and _holds(project, docs, entries, visible)):
        nodes.append(DOCS_NODE)
    return Plan(tuple(nodes), blocked)


def for_other_runners(run: Run) -> frozenset[str]:
    """Nodes that are not for a shared runner: a living runner for a single task has no result for them yet, or they
    were being built when a runner ran out of memory, and are for a larger one that is started for them alone."""
    results, endings = run.results(), run.endings()
    final = [result for result in results if result.status in FINAL]
    given = {(result.node, result.runner) for result in final}
    busy = {
        node
        for runner in run.runners()
        if runner.kind == "solo" and lives(runner, endings)
        for node in runner.nodes
        if (node, runner.number) not in given
    }
    heavy = {
        result.node
        for result in results
        if result.status == "running"
        and result.node != RUNNER_NODE
        and result.runner in endings
        and endings[result.runner].out_of_memory
        and not any(later.node == result.node and later.runner > result.runner for later in final)
    }
    return frozenset(busy | heavy)


def lives(runner: Runner, endings: Mapping[int, Ending]) -> bool:
    """An ECS task lives until it was seen gone: its own role may not ask ECS. A process can be looked for."""
    if runner.number in endings:
        return False
    return runner.launcher == "ecs" or process_alive(runner.pid, runner.started)


def buildable(project: Project) -> list[str]:
    """Everything that `dbt build` gives a result for: models but ephemerals, seeds, tests, unit tests."""
    nodes = [
        uid
        for uid, node in project.nodes.items()
        if node["resource_type"] in ("model", "seed", "test") and node["config"]["materialized"] != "ephemeral"
    ]
    return [*nodes, *project.unit_tests]


def _holds(project: Project, result: Result, entries: Mapping[str, Entry], visible: Mapping[str, str]) -> bool:
    """Whether a node is done by a result: final, and of the versions that the run has now."""
    if result.status not in FINAL - {"skipped"}:
        return False
    if any(visible.get(table) != version for table, version in result.reads.items()):
        return False
    table = project.table_of(result.node)
    entry = entries.get(table) if table else None
    return table is None or (entry is not None and entry.version is not None and entry.version.version == result.made)


def _failed_models(project: Project, latest: Mapping[str, Result]) -> dict[str, str]:
    """Models that failed, or were skipped for a unit test that did → the name of what failed."""
    failed = {}
    for node, result in latest.items():
        if result.status in _BAD:
            model = project.unit_tests.get(node, node)
            if model in project.nodes and model not in project.tests:
                failed[model] = str(project.node(node)["name"])
    return failed


def _upstream(project: Project, node: str) -> frozenset[str]:
    """What must be built before a node; a unit test goes with its model, and with nothing that the model reads."""
    if node in project.unit_tests:
        model = project.unit_tests[node]
        return project.ancestors.get(model, frozenset()) | {model}
    return project.ancestors.get(node, frozenset())
