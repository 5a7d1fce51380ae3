"""Task logs of an Airflow on one machine: read from files, never from a log server, which would listen everywhere."""

from __future__ import annotations

from typing import Any

from airflow.config_templates.airflow_local_settings import DEFAULT_LOGGING_CONFIG
from airflow.utils.log.file_task_handler import FileTaskHandler

from busco.orchestration.log_text import with_shown_text


class LocalTaskHandler(FileTaskHandler):
    """Without the question to the log server for each running task, which ends each page with an error here, or
    reaches the server of another Airflow on this machine."""

    # Airflow looks for it in the class itself, not in those above; without it triggers have no logs of their own
    trigger_should_wrap = True

    def _read_from_logs_server(self, ti: Any, worker_log_rel_path: str) -> tuple[list[str], list[str]]:  # noqa: ARG002
        return [], []


LOGGING_CONFIG = with_shown_text(DEFAULT_LOGGING_CONFIG)
LOGGING_CONFIG["handlers"]["task"]["class"] = f"{__name__}.{LocalTaskHandler.__name__}"
