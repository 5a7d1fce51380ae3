"""The runner: a process that builds part of a run's graph and writes the results (R9)."""

from __future__ import annotations

import hashlib
import os
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import duckdb
import psutil

import busco
from busco.aws import client
from busco.container import in_ecs, this_task
from busco.environments import code_version
from busco.errors import BuscoError
from busco.lake.layout import EnvironmentLayout, new_id
from busco.lake.objects import AlreadyExists, ObjectStore
from busco.lake.records import (
    DOCS_NODE,
    GOOD,
    RUNNER_NODE,
    Order,
    Release,
    Result,
    Runner,
    Status,
    utc_now,
)
from busco.lake.runs import Run, open_run
from busco.processes import this_host
from busco.project import Project
from busco.settings import Settings, require_lake
from busco.text import count
from busco.warehouse import baked, plugin
from busco.warehouse.dbt import Dbt, opened, say
from busco.warehouse.docs import make_docs
from busco.warehouse.heartbeats import beating
from busco.warehouse.plan import Plan, buildable, for_other_runners, lives, plan
from busco.warehouse.results import Reporter
from busco.warehouse.session import Session, write_bronze_metadata


@dataclass(frozen=True)
class Outcome:
    """The outcome of a runner: its number, and the status of each node by unique id."""

    number: int
    statuses: dict[str, str]

    @property
    def good(self) -> bool:
        return all(status in GOOD for status in self.statuses.values())


def open_store(settings: Settings) -> tuple[ObjectStore, EnvironmentLayout]:
    """Opens the lake that the settings specify.

    Raises:
        BuscoError: no lake is configured, or the local AWS isn't running.
    """
    require_lake(settings)
    store = ObjectStore(client("s3", settings), settings.lake_bucket)
    return store, EnvironmentLayout(settings.environment)


def work(settings: Settings, run_key: str, nodes: Sequence[str] | None = None, rebuild: bool = False) -> Outcome | None:
    """Calls `serve` with an unnamed order for `nodes` (dbt unique ids) or all remaining nodes, in the newest epoch."""
    order = Order(
        name="", generation=0, kind="shared" if nodes is None else "solo", nodes=tuple(nodes or ()), rebuild=rebuild
    )
    return serve(settings, open_run(*open_store(settings), run_key), order)


def serve(settings: Settings, run: Run, order: Order, log: str = "") -> Outcome | None:
    """Builds nodes of a run and writes their results.

    Args:
        order: specifies the nodes to build: those that it lists or, if its kind is `shared`, all nodes of the run
            without a result, and then the docs.
        log: the file with this process's output, recorded so that people can find it.

    Returns:
        The outcome; None if another runner is already doing this work.

    Raises:
        BuscoError: the run is over, or the project can't be parsed.
    """
    settings = settings.of_project(run.pin.project_dir, run.pin.project_id if run.pin.project else None)
    me = _register(run, _me(settings, order, log))
    if me is None:
        return None
    with beating(run.store, run.layout, me.number):
        return _serve(settings, run, order, me)


def _serve(settings: Settings, run: Run, order: Order, me: Runner) -> Outcome:
    planned: tuple[str, ...] | None = None

    def report(status: Status, problem: BuscoError | None = None) -> Result:
        return Result(
            node=RUNNER_NODE,
            runner=me.number,
            status=status,
            message=problem.message.splitlines()[0] if problem else "",
            error=str(problem) if problem else "",
            finished_at=None if status == "running" else utc_now(),
            plan=planned,
        )

    try:
        with opened(settings) as dbt:
            project = dbt.parse()
            todo = plan(run, project, for_other_runners(run)) if me.kind == "shared" else Plan(me.nodes, {})
            planned = todo.all
            run.put_result(report("running"))
            line = f"runner={me.number} run={run.name} epoch={run.pin.epoch} nodes={len(todo.nodes)}"
            say(f"{line} parsed_by={dbt.parsed_by}")
            base = run.base()
            if not run.environment.is_replay:
                # bronze metadata belongs to prod; replays are read by DuckDB, which doesn't need that metadata
                write_bronze_metadata(settings, project, run, run.pin.bronze, base)
            models = frozenset(n for n in todo.nodes if project.table_of(n)) if order.rebuild else frozenset()
            session = Session(settings, project, run.store, run, base, me.number, models, dbt.redactor, todo.nodes)
            plugin.activate(session)
            outcome = _build(dbt, project, run, session, todo, order)
        run.put_result(report("success"))
        return outcome
    except BuscoError as error:
        run.put_result(report("error", error))
        raise
    finally:
        plugin.activate(None)


def _me(settings: Settings, order: Order, log: str) -> Runner:
    task = this_task()
    if order.name and task is None and in_ecs():
        raise BuscoError(
            "the ECS task metadata endpoint is not responding, so followers would not be able to find this runner",
            "start the runner again",
        )
    return Runner(
        number=0,
        kind=order.kind,
        nodes=order.nodes,
        task=order.task,
        attempt=order.attempt,
        order=order.name,
        generation=order.generation,
        launcher="ecs" if task else "local",
        host=task.arn if task else this_host(settings.state),
        pid=os.getpid(),
        started=psutil.Process().create_time(),
        token=new_id(),
        log=log,
        arn=task.arn if task else "",
        size=order.size,
        cpu=round((task.cpu or 0) * 1024) if task else 0,
        memory=(task.memory or 0) >> 20 if task else 0,
    )


def _register(run: Run, me: Runner) -> Runner | None:
    """Registers this process, unless a runner for the same work is alive: such runners work one after another (R9)."""
    while True:
        known, endings = run.runners(), run.endings()
        for other in known:
            same = other.kind == me.kind == "shared" or (
                me.order and (other.order, other.generation) == (me.order, me.generation)
            )
            if same and lives(other, endings):
                return None
        number = len(known) + 1
        try:
            registered = me.model_copy(update={"number": number})
            run.store.create(run.layout.runner(number), registered)
            return registered
        except AlreadyExists:
            continue


def _build(dbt: Dbt, project: Project, run: Run, session: Session, todo: Plan, order: Order) -> Outcome:
    assert dbt.redactor is not None
    tested_code = project.unit_tests_code(_versions())
    reporter = Reporter(run, session, project, dbt.redactor, code_version(dbt.settings), tested_code)
    for node, parent in todo.blocked.items():
        text = f"skipped: {parent} failed in this run"
        run.put_result(
            Result(node=node, runner=session.runner, status="skipped", message=text, finished_at=utc_now()), text
        )
        reporter.statuses[node] = "skipped"
    kept = _kept_unit_tests(project, run, session.base, todo, order, reporter.tested_code)
    reporter.keep(kept)
    if kept:
        say(f"kept {count(len(kept), 'unit test')}: no code has changed since they passed")
    graph = [node for node in todo.nodes if node != DOCS_NODE and node not in kept]
    _check_parents(project, session, graph)
    # `dbt build` runs a unit test only together with its model; `dbt test` can run it alone
    alone = [node for node in graph if node in project.unit_tests and project.unit_tests[node] not in graph]
    together = [node for node in graph if node not in alone]
    planned = frozenset(node for node in graph if node in project.unit_tests)
    whole = run.pin.nodes is None and {*graph, *kept} == set(buildable(project))
    views = sorted({view for node in alone for view in project.views_above(project.unit_tests[node])})
    for verb, names in (("build", views), ("test", alone), ("build", together)):
        if not names:
            continue
        arguments = [verb, "--threads", str(dbt.settings.dbt_threads)]
        if not whole:
            names = [*names, *sorted({view for node in names for view in project.views_above(node)})]
            arguments += ["--indirect-selection", "empty", "--select", *(project.selector(n) for n in names)]
        result = dbt.invoke(arguments, [reporter], unit_tests=planned)
        reporter.check()
        if result.exception is not None:
            reason = dbt.reason(result)
            raise BuscoError(f"dbt exited without returning any results: {reason}", dbt.advice(reason))
    statuses: dict[str, str] = dict(reporter.statuses)
    for node in graph:
        if node not in statuses:
            raise BuscoError(
                f"dbt reported no result for {node}", "if the node was disabled or renamed, run: busco dbt parse"
            )
    if DOCS_NODE in todo.nodes:
        if all(status in GOOD for status in statuses.values()):
            statuses[DOCS_NODE] = _docs(dbt, project, run, session)
        elif order.kind == "solo":
            statuses[DOCS_NODE] = "skipped"
    for node, columns in sorted(session.unmarked.items()):
        say(
            f"warning: {project.table_of(node)}: personal data may have been passed on to {', '.join(columns)}; mark "
            "each of these columns with meta: {pii: true}, or with meta: {pii: false} if it contains none"
        )
    return Outcome(session.runner, statuses)


def _kept_unit_tests(
    project: Project, run: Run, base: Release | None, todo: Plan, order: Order, code: str
) -> list[str]:
    """Returns the planned unit tests that don't have to run, because all have passed with the same code (R7)."""
    if base is None or order.kind != "shared" or order.rebuild or run.pin.full_refresh or run.environment.is_replay:
        return []
    if base.tested_code.get(project.identity) != code:
        return []
    return [unit for unit in project.unit_tests if unit in todo.nodes and not project.may_vary(unit)]


def _versions() -> list[str]:
    """Returns what a unit test's result depends on besides the project: DuckDB, dbt and its options, and this code."""
    digest = hashlib.sha256()
    root = Path(busco.__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(path.read_bytes())
    options = sorted(f"{name}={value}" for name, value in os.environ.items() if name.startswith("DBT_"))
    return [duckdb.__version__, *(f"{name} {version(name)}" for name in baked.PACKAGES), digest.hexdigest(), *options]


def _check_parents(project: Project, session: Session, graph: Sequence[str]) -> None:
    """Checks that every table that the nodes read either is built by this runner or already has a version.

    Raises:
        BuscoError: some tables have no version; reading them as empty would produce wrong results.
    """
    here = {table for node in graph if (table := project.table_of(node))}
    missing: dict[str, list[str]] = {}
    for node in graph:
        if node in project.nodes:
            for parent in sorted(project.parents(node) - here):
                if session.version(parent) is None:
                    missing.setdefault(parent, []).append(project.nodes[node]["name"])
    if missing:
        listed = "; ".join(f"{table} (read by {', '.join(names[:3])})" for table, names in missing.items())
        raise BuscoError(
            f"there is no version of {listed} in this run or its base release", "select the parents too: +<model>"
        )


def _docs(dbt: Dbt, project: Project, run: Run, session: Session) -> str:
    started = utc_now()
    # include other runners' versions: a new connection creates relations for everything that is visible now
    session.refresh()
    # the docs describe only columns, so no rows are read
    session.nodes = ()
    plugin.activate(session)
    run.put_result(Result(node=DOCS_NODE, runner=session.runner, status="running"))
    try:
        docs = make_docs(dbt, project, run, session)
    except BuscoError as error:
        run.put_result(
            Result(
                node=DOCS_NODE,
                runner=session.runner,
                status="error",
                message=error.message.splitlines()[0],
                error=str(error),
                finished_at=utc_now(),
            ),
            str(error),
        )
        return "error"
    seconds = (utc_now() - started).total_seconds()
    text = f"generated docs for {count(len(docs.described), 'table')} in {seconds:.1f} s"
    pages = _site(project, run, session, docs.manifest)
    result = Result(
        node=DOCS_NODE,
        runner=session.runner,
        status="success",
        reads=docs.described,
        message=text,
        seconds=(utc_now() - started).total_seconds(),
        finished_at=utc_now(),
    )
    run.put_result(result, f"{text}\n{pages}\n")
    return "success"


def _site(project: Project, run: Run, session: Session, manifest: Mapping[str, Any]) -> str:
    """Makes the site's files. Returns what was done; an error is part of it, because it must not hold up a release."""
    # imported here because SQLGlot slows down startup
    from busco.warehouse.site import make_site

    try:
        return make_site(project, run, session, manifest)
    except Exception as error:
        text = "".join(traceback.format_exception(error)).rstrip()
        say(f"warning: the site will have no pages for this release, because making them failed: {error}")
        return f"warning: the site will have no pages for this release, because making them failed:\n{text}"
