"""The dbt-duckdb plugin behind the `lake` materialization.

The plugin reads and writes the run's records. All SQL runs on dbt's own connection.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
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

# The session of this process. It is global because dbt creates plugins itself, so a session can't be passed to them.
_active: Session | None = None
_guard = Guard()

# The keys of a step's dictionary that macros may set. All other keys are reset to the values from earlier steps.
_GIVEN = frozenset({"node", "step", "sql", "described", "known", "stats", "counted", "file", "delimiter", "names"})

_VIEWS_AT_ONCE = 8

# the columns of the query that dbt runs for a test
_OF_A_TEST = ("failures", "should_warn", "should_error")


def activate(session: Session | None) -> None:
    """Makes this process's connections use `session`; None deactivates the current session."""
    global _active, _guard
    # dbt-duckdb keeps its connection across commands, but a new session needs a new connection
    DuckDBConnectionManager.close_all_connections()  # type: ignore[no-untyped-call]
    _active = session
    _guard = Guard()
    if session is not None:
        bucket = session.store.bucket if session.store else ""
        scope = Scope(session.project, session.redactor.hides)
        _guard = Guard(bucket, session.project.seed_files, session.redactor, scope)


def check(sql: str) -> bool:
    """Refuses statements that a project must not run (`busco.warehouse.guard`).

    Returns:
        Whether the results may contain personal data.

    Raises:
        DbtRuntimeError: a statement is refused; the message states the node, the line and the reason.
    """
    try:
        return _guard.check(sql, current_node())
    except BuscoError as error:
        raise DbtRuntimeError(str(error)) from error


def _checked(query: str, what: str) -> None:
    try:
        _guard.check_question(query, what)
    except BuscoError as error:
        raise DbtRuntimeError(str(error)) from error


def rows_fetched(names: Sequence[str]) -> None:
    """Records that the current node's Jinja fetched rows that may contain personal data. dbt itself fetches rows only
    for tests; those rows contain only counts and are ignored here.

    Args:
        names: the names of the fetched columns.
    """
    node = current_node()
    if _active is None or tuple(names) == _OF_A_TEST:
        return
    if node in _active.project.nodes or node in _active.project.unit_tests:
        _active.redactor.mark_queried(node)


def current_node() -> str:
    """Returns the unique id of the node that this dbt thread is working on; '' for none."""
    return str(get_node_info().get("unique_id") or "")


class Plugin(BasePlugin):
    """Creates all visible relations when dbt connects, and runs the steps of a materialization (`store`)."""

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
        views = []
        for schema, name, queries, is_ours in _active.relations():
            if not is_ours:
                # the query contains types from the project's YAML
                _checked(queries[0], f"{schema}.{name}")
            views.append((quoted_relation(schema, name), queries))
        # most of this time is spent waiting for S3, where DuckDB opens the first file of each table that is read
        with ThreadPoolExecutor(max_workers=_VIEWS_AT_ONCE) as pool:
            list(pool.map(lambda view: engine.create_view(conn.cursor(), *view), views))
        store = _active.store
        folders = [store.url(folder) for folder in TABLE_FOLDERS] if store is not None else []
        engine.close(conn, folders, sorted(_active.project.seed_files))

    def store(self, target_config: TargetConfig) -> None:
        """Runs the step of the materialization that the key `step` in `target_config.config` names.

        The project's Jinja can also call this method, with any dictionary. Therefore, the dictionary must name the
        current node, results of earlier steps are not read from it, and only statements that the steps build are
        granted.
        """
        job = target_config.config
        try:
            if _active is None:
                raise BuscoError(
                    "only the platform can build models with the `lake` materialization", "use: busco dbt build"
                )
            node, step = current_node(), str(job["step"])
            if job["node"] != node:
                raise BuscoError(f"{node} can't run a step of {job['node']}", "do not call store_relation")
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
                _active.redactor.allow(str(error))
            raise DbtRuntimeError(str(error)) from error
        except duckdb.ParserException as error:
            # this is the message that dbt would show if it ran the statement itself
            raise DbtRuntimeError(str(error)) from error

    def _grant(self, step: str, job: dict[str, Any], node: Mapping[str, Any]) -> None:
        """Grants the statements that a step has built, and those that dbt's macros build after that step."""
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
