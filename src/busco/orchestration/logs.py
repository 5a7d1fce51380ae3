"""The Airflow image's logging configuration (see config/airflow.cfg), which stores task and trigger logs in S3.

Our tasks run in the triggerer, but the Amazon provider's handler no longer captures trigger logs: Airflow 2.10 looks
for `trigger_should_wrap` in the handler's own class (`airflow.jobs.triggerer_job_runner`), and provider 9.17 no longer
defines it there. Without this module, a task's log page would be empty.
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
    """The provider's uploader, changed to use one S3 client per process and to delete only the log that it uploaded."""

    @property
    def hook(self) -> S3Hook:
        return _hook(os.getpid())

    def upload(self, path: os.PathLike[str] | str, ti: Any) -> None:  # noqa: ARG002
        """Appends a local log to its object in S3. A log that can't be written to S3 stays on disk.

        Args:
            path: the log's path, relative to the local log folder.
        """
        local = self.base_log_folder / path
        if not local.is_file():
            return
        name = local.relative_to(self.base_log_folder)
        if self.write(local.read_text(), f"{self.remote_base.rstrip('/')}/{name}") and self.delete_local_copy:
            # the provider's `upload` deletes the whole folder, with logs of other tries that are still being written
            local.unlink(missing_ok=True)


class TaskHandler(S3TaskHandler):  # type: ignore[misc, unused-ignore]
    """The provider's handler, extended to capture trigger logs."""

    trigger_should_wrap = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.io = Uploads(
            remote_base=self.io.remote_base,
            base_log_folder=Path(self.io.base_log_folder),
            delete_local_copy=self.io.delete_local_copy,
        )


@lru_cache(maxsize=1)
def _hook(pid: int) -> S3Hook:  # noqa: ARG001 (part of the cache key: a client must not be used after a fork)
    return S3Hook(aws_conn_id=conf.get("logging", "remote_log_conn_id"), transfer_config_args={"use_threads": False})


LOGGING_CONFIG = with_shown_text(DEFAULT_LOGGING_CONFIG)
# unless logging.remote_base_log_folder is an S3 location, Airflow's own handler writes local files
if "s3_log_folder" in LOGGING_CONFIG["handlers"]["task"]:
    LOGGING_CONFIG["handlers"]["task"]["class"] = f"{__name__}.{TaskHandler.__name__}"
