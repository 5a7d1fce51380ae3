"""Everything that we use of Airflow and Cosmos beyond their public interfaces is listed here, and has not changed.

The public modules are those named on Airflow's page "Public Interface of Airflow" (2.10) and in Cosmos's
documentation. If a test fails after an upgrade: read what has changed, adapt our code, and update the signature.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PUBLIC = {
    "airflow.configuration",
    "airflow.datasets",
    "airflow.decorators",
    "airflow.exceptions",
    "airflow.models",
    "airflow.models.baseoperator",
    "airflow.models.baseoperatorlink",
    "airflow.models.dag",
    "airflow.models.param",
    "airflow.models.taskinstance",
    "airflow.models.taskinstancekey",
    "airflow.operators.empty",
    "airflow.operators.trigger_dagrun",
    "airflow.plugins_manager",
    "airflow.providers.amazon.aws.hooks.s3",
    "airflow.providers.amazon.aws.operators.ecs",
    "airflow.providers.fab.auth_manager.security_manager.override",
    "airflow.triggers.base",
    "airflow.utils.context",
    "airflow.utils.state",
    "airflow.utils.task_group",
    "airflow.utils.timezone",
    "cosmos",
    "cosmos.constants",
}
# module.name → the signature of a function, or the type of anything else
PRIVATE = {
    "airflow.__main__.main": "()",
    "airflow.api.common.trigger_dag.trigger_dag": (
        "(dag_id: 'str', run_id: 'str | None' = None, conf: 'dict | str | None' = None, "
        "execution_date: 'datetime | None' = None, replace_microseconds: 'bool' = True, session: 'Session' = None) "
        "-> 'DagRun | None'"
    ),
    "airflow.datasets.manager.dataset_manager": "DatasetManager",
    "airflow.auth.managers.models.resource_details.DagAccessEntity": "EnumType",
    "airflow.auth.managers.models.resource_details.DagDetails": "type",
    "airflow.cli.commands.triggerer_command": "module",
    "airflow.config_templates.airflow_local_settings.DEFAULT_LOGGING_CONFIG": "dict",
    "airflow.jobs.job.Job": "DeclarativeMeta",
    "airflow.jobs.job.perform_heartbeat": "(*args, **kwargs)",
    "airflow.jobs.triggerer_job_runner.TriggererJobRunner": "type",
    "airflow.jobs.triggerer_job_runner.TriggerRunner": "type",
    "airflow.models.dagbag.DagPriorityParsingRequest": "DeclarativeMeta",
    "airflow.models.dagrun.DagRun": "DeclarativeMeta",
    "airflow.models.dataset.DatasetDagRunQueue": "DeclarativeMeta",
    "airflow.models.errors.ParseImportError": "DeclarativeMeta",
    "airflow.models.log.Log": "DeclarativeMeta",
    "airflow.models.taskinstancehistory.TaskInstanceHistory": "DeclarativeMeta",
    "airflow.models.trigger.Trigger": "DeclarativeMeta",
    "airflow.providers.amazon.aws.log.s3_task_handler.S3RemoteLogIO.upload": (
        "(self, path: 'os.PathLike | str', ti: 'RuntimeTI')"
    ),
    "airflow.providers.amazon.aws.log.s3_task_handler.S3RemoteLogIO.write": (
        "(self, log: 'str', remote_log_location: 'str', append: 'bool' = True, max_retry: 'int' = 1) -> 'bool'"
    ),
    "airflow.providers.amazon.aws.log.s3_task_handler.S3TaskHandler": "type",
    "airflow.providers.fab.auth_manager.api.auth.backend.basic_auth.auth_current_user": "() -> 'User | None'",
    "airflow.providers.fab.auth_manager.cli_commands.utils.get_application_builder": (
        "() -> 'Generator[AirflowAppBuilder, None, None]'"
    ),
    "airflow.utils.airflow_flask_app.get_airflow_app": ("() -> 'AirflowApp'"),
    "airflow.utils.db.check_migrations": "(timeout)",
    "airflow.utils.db.upgradedb": (
        "(*, to_revision: 'str | None' = None, from_revision: 'str | None' = None, show_sql_only: 'bool' = False, "
        "reserialize_dags: 'bool' = True, session: 'Session' = None, use_migration_files: 'bool' = False)"
    ),
    "airflow.utils.log.timezone_aware.TimezoneAware": "type",
    "airflow.utils.log.file_task_handler.FileTaskHandler._read_from_logs_server": (
        "(self, ti, worker_log_rel_path) -> 'tuple[list[str], list[str]]'"
    ),
    "airflow.utils.session.create_session": ("() -> 'Generator[SASession, None, None]'"),
    "airflow.www.auth.has_access_dag": (
        "(method: 'ResourceMethod', access_entity: 'DagAccessEntity | None' = None) -> 'Callable[[T], T]'"
    ),
    "airflow.www.auth.has_access_view": (
        "(access_view: 'AccessView' = <AccessView.WEBSITE: 'WEBSITE'>) -> 'Callable[[T], T]'"
    ),
    "airflow.www.extensions.init_auth_manager.get_auth_manager": "() -> 'BaseAuthManager'",
    "airflow.www.views.AirflowBaseView": "type",
    "cosmos.dbt.graph.DbtNode": "type",
}


def imported(file: Path) -> set[str]:
    """Returns the names that a file imports from Airflow and Cosmos, as `module.name`."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.split(".")[0] in ("airflow", "cosmos")}


def is_public(name: str) -> bool:
    return name in PUBLIC or name.rpartition(".")[0] in PUBLIC


def resolved(name: str) -> Any:
    """Returns the object with a dotted name, of which any leading part can be the module."""
    parts = name.split(".")
    for number in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:number]))
        except ModuleNotFoundError:
            continue
        for part in parts[number:]:
            found = getattr(found, part)
        return found
    raise AssertionError(name)


def test_the_private_names_that_are_imported_are_exactly_those_listed_here() -> None:
    files = [file for folder in ("src", "dags", "config", "scripts") for file in (ROOT / folder).rglob("*.py")]
    used = {name for file in files for name in imported(file) if not is_public(name)}
    assert len(files) > 100
    assert {
        name for name in used if not any(known == name or known.startswith(f"{name}.") for known in PRIVATE)
    } == set()
    assert {
        known for known in PRIVATE if not any(known == name or known.startswith(f"{name}.") for name in used)
    } == set()


@pytest.mark.parametrize("name", PRIVATE)
def test_a_private_interface_has_the_signature_that_was_reviewed(name: str) -> None:
    found = resolved(name)
    assert (str(inspect.signature(found)) if inspect.isroutine(found) else type(found).__name__) == PRIVATE[name]
