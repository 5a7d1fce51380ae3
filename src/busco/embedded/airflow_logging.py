"""Makes the embedded Airflow read task logs only from files, because a log server would listen on every address."""

from __future__ import annotations

from typing import Any

from airflow.config_templates.airflow_local_settings import DEFAULT_LOGGING_CONFIG
from airflow.utils.log.file_task_handler import FileTaskHandler

from busco.orchestration.log_text import with_shown_text


class LocalTaskHandler(FileTaskHandler):
    """Reads task logs from files only.

    The stock handler queries a log server for each running task. Here, such a query would either add an error to the
    end of each page of the log, or reach the log server of another Airflow on the same machine.
    """

    # Airflow looks for this attribute in the class itself, not in its base classes. Without the attribute, triggers
    # would have no logs of their own.
    trigger_should_wrap = True

    def _read_from_logs_server(self, ti: Any, worker_log_rel_path: str) -> tuple[list[str], list[str]]:  # noqa: ARG002
        return [], []


LOGGING_CONFIG = with_shown_text(DEFAULT_LOGGING_CONFIG)
LOGGING_CONFIG["handlers"]["task"]["class"] = f"{__name__}.{LocalTaskHandler.__name__}"
