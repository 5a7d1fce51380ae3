"""Plans the work of a shared runner: the nodes without a valid result, and the nodes that a failure blocks."""

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
    """The remaining work of a run. Nodes are dbt unique ids.

    Attributes:
        nodes: the nodes to build or test; DOCS_NODE stands for the docs.
        blocked: the nodes to skip, each mapped to the name of the failed model or test that blocks it.
    """

    nodes: tuple[str, ...]
    blocked: Mapping[str, str]

    @property
    def all(self) -> tuple[str, ...]:
        """All nodes for which the runner writes a result."""
        return (*self.nodes, *self.blocked)


def plan(run: Run, project: Project, elsewhere: frozenset[str] = frozenset()) -> Plan:
    """Returns the remaining work of a run.

    A node is done if it has a final result for the versions that are now in the run. If a table has been rebuilt since,
    the tests and models that read its old version are not done. A failed node is done, too: it is rebuilt only if
    somebody clears its task.

    Args:
        elsewhere: nodes for other runners (`for_other_runners`); they and the nodes downstream of them are left out.
    """
    latest = run.latest_results()
    entries = run.entries()
    visible = {table: version.version for table, version in visible_versions(run, run.base(), entries).items()}
    failed = _failed_models(project, latest)
    remaining = [
        node
        for node in buildable(project)
        if (run.pin.nodes is None or node in run.pin.nodes)
        and node not in failed
        and not (node in latest and _is_current(project, latest[node], entries, visible))
        and not _upstream(project, node) & elsewhere
        and node not in elsewhere
    ]
    failed_tests = [test for test in project.tests if test in latest and latest[test].status in _BAD]
    failed_tests = [test for test in failed_tests if test not in remaining]
    blocked: dict[str, str] = {}
    for node in remaining:
        for model in sorted(_upstream(project, node) & failed.keys()):
            blocked.setdefault(node, failed[model])
        for test in failed_tests:
            if project.unit_tests.get(node, node) in project.gates[test]:
                blocked.setdefault(node, str(project.tests[test]["name"]))
    nodes = [node for node in remaining if node not in blocked]
    # whenever a model is built, its unit tests run too
    chosen = set(nodes)
    nodes += [
        unit
        for unit, model in project.unit_tests.items()
        if model in chosen and unit not in chosen and (run.pin.nodes is None or unit in run.pin.nodes)
    ]
    docs = latest.get(DOCS_NODE)
    if not elsewhere and not (docs and _is_current(project, docs, entries, visible)):
        nodes.append(DOCS_NODE)
    return Plan(tuple(nodes), blocked)


def for_other_runners(run: Run) -> frozenset[str]:
    """Returns the nodes that a shared runner must leave alone. Either a live runner for a single task is still working
    on them, or a runner ran out of memory while it was building them. In the latter case, each node gets a larger
    runner of its own."""
    results, endings = run.results(), run.endings()
    final = [result for result in results if result.status in FINAL]
    reported = {(result.node, result.runner) for result in final}
    busy = {
        node
        for runner in run.runners()
        if runner.kind == "solo" and lives(runner, endings)
        for node in runner.nodes
        if (node, runner.number) not in reported
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
    """Whether a runner may still be running. An ECS task counts as running until its ending is recorded, because the
    task's role can't query ECS. A local process is looked up by its id."""
    if runner.number in endings:
        return False
    return runner.launcher == "ecs" or process_alive(runner.pid, runner.started)


def buildable(project: Project) -> list[str]:
    """Returns all nodes that `dbt build` reports a result for: models (except ephemerals), seeds, tests, unit tests."""
    nodes = [
        uid
        for uid, node in project.nodes.items()
        if node["resource_type"] in ("model", "seed", "test") and node["config"]["materialized"] != "ephemeral"
    ]
    return [*nodes, *project.unit_tests]


def _is_current(project: Project, result: Result, entries: Mapping[str, Entry], visible: Mapping[str, str]) -> bool:
    """Whether a result is final and is for the versions that are now in the run."""
    if result.status not in FINAL - {"skipped"}:
        return False
    if any(visible.get(table) != version for table, version in result.reads.items()):
        return False
    table = project.table_of(result.node)
    entry = entries.get(table) if table else None
    return table is None or (entry is not None and entry.version is not None and entry.version.version == result.made)


def _failed_models(project: Project, latest: Mapping[str, Result]) -> dict[str, str]:
    """Maps each model that failed, or that was skipped because its unit test failed, to the name of the failed node."""
    failed = {}
    for node, result in latest.items():
        if result.status in _BAD:
            model = project.unit_tests.get(node, node)
            if model in project.nodes and model not in project.tests:
                failed[model] = str(project.node(node)["name"])
    return failed


def _upstream(project: Project, node: str) -> frozenset[str]:
    """Returns what must be built before a node; for a unit test, that is its model and everything upstream of it."""
    if node in project.unit_tests:
        model = project.unit_tests[node]
        return project.ancestors.get(model, frozenset()) | {model}
    return project.ancestors.get(node, frozenset())
