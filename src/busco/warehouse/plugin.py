"""The dbt-duckdb plugin of the materialization `lake`: it reads and writes records, dbt's connection runs the SQL."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dbt.adapters.duckdb.connections import DuckDBConnectionManager
from dbt.adapters.duckdb.credentials import DuckDBCredentials
from dbt.adapters.duckdb.plugins import BasePlugin
from dbt.adapters.duckdb.utils import TargetConfig
from dbt_common.exceptions import DbtRuntimeError
from duckdb import DuckDBPyConnection

from busco.errors import BuscoError
from busco.lake import engine, types
from busco.warehouse.session import Session, quoted_relation

# The session of this process. dbt makes plugins itself, so that there is no other way to hand it over.
_active: Session | None = None


def activate(session: Session | None) -> None:
    """Makes `session` the one that connections of this process work for; None ends it."""
    global _active
    # dbt-duckdb keeps its connection over commands of one process: another session needs another one
    DuckDBConnectionManager.close_all_connections()  # type: ignore[no-untyped-call]
    _active = session


class Plugin(BasePlugin):
    """Relations of everything visible at connect; the steps of a materialization in `store`."""

    def update_connection_config(self, creds: DuckDBCredentials, config: dict[str, Any]) -> None:  # noqa: ARG002
        if _active is not None:
            config.update(engine.config(_active.budget))

    def configure_connection(self, conn: DuckDBPyConnection) -> None:
        if _active is None:
            return
        engine.prepare(conn, _active.budget)
        if _active.store is not None:
            engine.reach(conn, _active.settings)
        for schema in sorted(_active.schemas()):
            conn.execute(f"create schema if not exists {types.quoted(schema)}")
        for schema, name, query in _active.relations():
            conn.execute(f"create or replace view {quoted_relation(schema, name)} as {query}")

    def store(self, target_config: TargetConfig) -> None:
        """One step of the materialization: `target_config.config` is its dictionary, `step` says which."""
        job = target_config.config
        try:
            if _active is None:
                raise BuscoError("models of materialization lake are built by the platform", "use: busco dbt build")
            steps: dict[str, Callable[[dict[str, Any]], None]] = {
                "begin": _active.begin,
                "check_header": _active.check_header,
                "check_names": _active.check_names,
                "check_renamed": _active.check_renamed,
                "describe": _active.describe,
                "wrote": _active.wrote,
                "commit": _active.commit,
            }
            steps[str(job["step"])](job)
        except BuscoError as error:
            if _active is not None and _active.redactor is not None:
                _active.redactor.tell(str(error))
            raise DbtRuntimeError(str(error)) from error
