"""dbt-duckdb's environment with guarded cursors: the guard checks every statement that dbt sends to DuckDB."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dbt.adapters.duckdb import environments
from dbt.adapters.duckdb.credentials import DuckDBCredentials
from dbt.adapters.duckdb.environments.local import LocalEnvironment
from dbt.adapters.duckdb.plugins import BasePlugin
from dbt.adapters.duckdb.utils import SourceConfig, TargetConfig
from dbt_common.exceptions import DbtRuntimeError

PLUGIN = "lake"


class GuardedCursor:
    """A cursor with only the methods that dbt uses, since a project's Jinja can get a cursor from `adapter.add_query`.

    Args:
        check: raises if the SQL must not run; otherwise, returns whether its results may contain personal data.
        fetched: called with the column names when rows that may contain personal data are fetched.
    """

    def __init__(self, cursor: Any, check: Callable[[str], bool], fetched: Callable[[Sequence[str]], None]) -> None:
        self._cursor, self._check, self._fetched = cursor, check, fetched
        self._is_personal = False
        self.rollback, self.interrupt, self.close = cursor.rollback, cursor.interrupt, cursor.close

    @property
    def description(self) -> Any:
        return self._cursor.description

    @property
    def rowcount(self) -> Any:
        return self._cursor.rowcount

    def execute(self, sql: str, bindings: Any = None) -> GuardedCursor:
        """Runs statements if the guard allows them.

        Raises:
            DbtRuntimeError: the guard refuses them.
            duckdb.Error: DuckDB fails to run them.
        """
        self._is_personal = self._check(sql)
        if bindings is None:
            self._cursor.execute(sql)
        else:
            self._cursor.execute(sql, bindings)
        return self

    def fetchone(self) -> Any:
        return self._noted(self._cursor.fetchone())

    def fetchmany(self, size: int = 1) -> Any:
        return self._noted(self._cursor.fetchmany(size))

    def fetchall(self) -> Any:
        return self._noted(self._cursor.fetchall())

    def _noted(self, rows: Any) -> Any:
        if rows and self._is_personal:
            self._fetched([str(column[0]) for column in self.description or ()])
        return rows


class GuardedEnvironment(LocalEnvironment):
    """dbt-duckdb's in-process environment, in which every cursor is guarded."""

    @classmethod
    def initialize_cursor(
        cls,
        creds: DuckDBCredentials,
        cursor: Any,
        plugins: dict[str, BasePlugin] | None = None,
        registered_df: dict[str, Any] | None = None,
    ) -> GuardedCursor:
        from busco.warehouse import plugin

        made = super().initialize_cursor(creds, cursor, plugins, registered_df or {})
        return GuardedCursor(made, plugin.check, plugin.rows_fetched)

    def store_relation(self, plugin_name: str, target_config: TargetConfig) -> None:
        # dbt-duckdb would create its own plugins here, including one that writes to Glue
        if plugin_name != PLUGIN:
            raise DbtRuntimeError(f"the plugin {plugin_name} is not allowed: only the platform writes a model's rows")
        super().store_relation(plugin_name, target_config)

    def load_source(self, plugin_name: str, source_config: SourceConfig) -> str:
        source = source_config.table_name()
        raise DbtRuntimeError(f"the plugin {plugin_name} of {source} is not supported: ingest the source's files")

    def submit_python_job(self, handle: Any, parsed_model: dict[str, Any], compiled_code: str) -> Any:  # noqa: ARG002
        raise DbtRuntimeError(f"Python models are not supported: write {parsed_model.get('alias')} in SQL")


def install() -> None:
    """Makes dbt-duckdb use `GuardedEnvironment` in this process. dbt-duckdb has no setting for its environment, so the
    factory function is replaced; a test opens a connection through dbt and checks the connection's cursor."""
    environments.create = GuardedEnvironment  # type: ignore[assignment]
