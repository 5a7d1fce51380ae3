"""Task logs in S3, those of triggers too: what Airflow's image has as its logging configuration (config/airflow.cfg).

Our tasks run in the triggerer. The Amazon provider's handler has no logs of triggers any more: Airflow 2.10 looks for
`trigger_should_wrap` in the handler's own class (`airflow.jobs.triggerer_job_runner`), where provider 9.17 has it no
longer; the page of a task would be empty.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from airflow.config_templates.airflow_local_settings import DEFAULT_LOGGING_CONFIG
from airflow.configuration import conf
from airflow.providers.amazon.aws.hooks.s3 import S3Hook
from airflow.providers.amazon.aws.log.s3_task_handler import S3RemoteLogIO, S3TaskHandler

from busco.orchestration.log_text import with_shown_text


class Uploads(S3RemoteLogIO):  # type: ignore[misc, unused-ignore]
    """The provider's, with one client for all logs of a process, and a local copy that goes once it is in S3."""

    @property
    def hook(self) -> S3Hook:
        return _hook(os.getpid())

    def upload(self, path: os.PathLike[str] | str, ti: Any) -> None:  # noqa: ARG002
        """Writes a log behind what S3 has of it already. One that can't be written stays here.

        Args:
            path: of the log, below the folder of local logs.
        """
        local = self.base_log_folder / path
        if not local.is_file():
            return
        name = local.relative_to(self.base_log_folder)
        if self.write(local.read_text(), f"{self.remote_base.rstrip('/')}/{name}") and self.delete_local_copy:
            # the provider's takes the folder, with the logs of other tries that are being written
            local.unlink(missing_ok=True)


class TaskHandler(S3TaskHandler):  # type: ignore[misc, unused-ignore]
    """The provider's handler, for triggers too."""

    trigger_should_wrap = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.io = Uploads(
            remote_base=self.io.remote_base,
            base_log_folder=Path(self.io.base_log_folder),
            delete_local_copy=self.io.delete_local_copy,
        )


@lru_cache(maxsize=1)
def _hook(pid: int) -> S3Hook:  # noqa: ARG001 (a client does not outlive a fork)
    return S3Hook(aws_conn_id=conf.get("logging", "remote_log_conn_id"), transfer_config_args={"use_threads": False})


LOGGING_CONFIG = with_shown_text(DEFAULT_LOGGING_CONFIG)
# without a folder in S3 (logging.remote_base_log_folder) the handler is Airflow's own, for local files
if "s3_log_folder" in LOGGING_CONFIG["handlers"]["task"]:
    LOGGING_CONFIG["handlers"]["task"]["class"] = f"{__name__}.{TaskHandler.__name__}"
