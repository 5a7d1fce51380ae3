"""The dbt-duckdb plugin of the materialization `lake`: it reads and writes records, dbt's connection runs the SQL."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import duckdb
from dbt.adapters.duckdb.connections import DuckDBConnectionManager
from dbt.adapters.duckdb.credentials import DuckDBCredentials
from dbt.adapters.duckdb.plugins import BasePlugin
from dbt.adapters.duckdb.utils import TargetConfig
from dbt_common.events.contextvars import get_node_info
from dbt_common.exceptions import DbtRuntimeError
from duckdb import DuckDBPyConnection

from busco.errors import BuscoError
from busco.lake import engine, types
from busco.lake.layout import TABLE_FOLDERS
from busco.warehouse.guard import Guard
from busco.warehouse.scope import Scope
from busco.warehouse.session import Session, quoted_relation

# The session of this process. dbt makes plugins itself, so that there is no other way to hand it over.
_active: Session | None = None
_guard = Guard()

# What the macros put into a step's dictionary. All else in it comes from the steps before, and is taken from these.
_GIVEN = frozenset({"node", "step", "sql", "described", "known", "stats", "counted", "file", "delimiter", "names"})

# the columns of what dbt asks for a test's sake
_OF_A_TEST = ("failures", "should_warn", "should_error")


def activate(session: Session | None) -> None:
    """Makes `session` the one that connections of this process work for; None ends it."""
    global _active, _guard
    # dbt-duckdb keeps its connection over commands of one process: another session needs another one
    DuckDBConnectionManager.close_all_connections()  # type: ignore[no-untyped-call]
    _active = session
    _guard = Guard()
    if session is not None:
        bucket = session.store.bucket if session.store else ""
        scope = Scope(session.project, session.redactor.hides)
        _guard = Guard(bucket, session.project.seed_files, session.redactor, scope)


def check(sql: str) -> bool:
    """Refuses statements that a project's SQL may not run (`busco.warehouse.guard`).

    Returns whether what they give may be personal values.

    Raises:
        DbtRuntimeError: with the node at work, the line and the reason.
    """
    try:
        return _guard.check(sql, node_at_work())
    except BuscoError as error:
        raise DbtRuntimeError(str(error)) from error


def _checked(query: str, what: str) -> None:
    try:
        _guard.check_question(query, what)
    except BuscoError as error:
        raise DbtRuntimeError(str(error)) from error


def handed(names: Sequence[str]) -> None:
    """Takes note that rows of what may be personal values were given to who asked for them: Jinja, unless they are the
    numbers of a test, which dbt asks for.

    Args:
        names: of the columns.
    """
    node = node_at_work()
    if _active is None or tuple(names) == _OF_A_TEST:
        return
    if node in _active.project.nodes or node in _active.project.unit_tests:
        _active.redactor.asked(node)


def node_at_work() -> str:
    """The unique id of the node that this thread of dbt's is at; '' for none."""
    return str(get_node_info().get("unique_id") or "")


class Plugin(BasePlugin):
    """Relations of everything visible at connect; the steps of a materialization in `store`."""

    def update_connection_config(self, creds: DuckDBCredentials, config: dict[str, Any]) -> None:  # noqa: ARG002
        if _active is not None:
            config.update(engine.config(_active.budget))
        config.update(engine.CLOSED)

    def configure_connection(self, conn: DuckDBPyConnection) -> None:
        if _active is None:
            engine.close(conn)
            return
        engine.prepare(conn, _active.budget)
        if _active.store is not None:
            engine.reach(conn, _active.settings)
        for schema in sorted(_active.schemas()):
            conn.execute(f"create schema if not exists {types.quoted(schema)}")
        for schema, name, query, is_ours in _active.relations():
            if not is_ours:
                # types of the project's YAML stand in it
                _checked(query, f"{schema}.{name}")
            conn.execute(f"create or replace view {quoted_relation(schema, name)} as {query}")
        store = _active.store
        folders = [store.url(folder) for folder in TABLE_FOLDERS] if store is not None else []
        engine.close(conn, folders, sorted(_active.project.seed_files))

    def store(self, target_config: TargetConfig) -> None:
        """One step of the materialization: `target_config.config` is its dictionary, `step` says which.

        Jinja of the project can call this too, with any dictionary. So the node is the one at work, what earlier steps
        have decided is not taken from the dictionary, and no statement is granted but those that steps make.
        """
        job = target_config.config
        try:
            if _active is None:
                raise BuscoError("models of materialization lake are built by the platform", "use: busco dbt build")
            node, step = node_at_work(), str(job["step"])
            if job["node"] != node:
                raise BuscoError(f"{node} can't work for {job['node']}", "leave store_relation to the platform")
            steps: dict[str, Callable[[dict[str, Any]], None]] = {
                "check_sql": lambda given: _guard.check_question(str(given["sql"]), node),
                "begin": _active.begin,
                "check_header": _active.check_header,
                "check_names": _active.check_names,
                "check_renamed": _active.check_renamed,
                "describe": _active.describe,
                "wrote": _active.wrote,
                "commit": _active.commit,
            }
            decided = {} if step in ("check_sql", "begin") else _active.decided.setdefault(node, {})
            given = {key: job[key] for key in _GIVEN & {*job}}
            job.clear()
            job.update(given | decided)
            if step == "describe":
                _guard.check_question(str(job["sql"]), node)
            steps[step](job)
            if step != "check_sql":
                _active.decided[node] = {key: value for key, value in job.items() if key not in _GIVEN}
            self._grant(step, job, _active.project.node(node))
        except BuscoError as error:
            if _active is not None:
                _active.redactor.tell(str(error))
            raise DbtRuntimeError(str(error)) from error
        except duckdb.ParserException as error:
            # as dbt says it of what it runs itself
            raise DbtRuntimeError(str(error)) from error

    def _grant(self, step: str, job: dict[str, Any], node: Mapping[str, Any]) -> None:
        """Lets the statements run that a step has made, or that dbt's macros make behind it."""
        relation, scope = str(node["relation_name"]), _guard.scope
        assert scope is not None
        if step == "check_sql":
            _guard.grant(f"describe (\n{job['sql']}\n)")
        elif step == "check_header" or (step == "check_names" and node["config"]["materialized"] == "view"):
            scope.begin(str(node["unique_id"]))
        elif step == "commit" and node["resource_type"] == "seed":
            scope.end(str(node["unique_id"]))
            _guard.grant(f"drop table {relation}")
        if step == "describe":
            _guard.grant(str(job["copy_sql"]))
        elif step == "wrote":
            for query in job["count_sql"].values():
                _guard.grant(query)
        elif "view_sql" in job:
            _guard.grant(f"create or replace view {relation} as {job['view_sql']}")
