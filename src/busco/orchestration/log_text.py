"""Airflow's own log lines, shown as `busco.text` says: tasks' logs and services' logs are read in terminals too."""

from __future__ import annotations

import copy
import logging
from typing import Any

from airflow.utils.log.timezone_aware import TimezoneAware

from busco.text import shown


class ShownFormatter(TimezoneAware):  # type: ignore[misc, unused-ignore]
    """Airflow's lines without control characters: they quote models, files and people."""

    def format(self, record: logging.LogRecord) -> str:
        return shown(super().format(record))


def with_shown_text(config: dict[str, Any]) -> dict[str, Any]:
    """A copy of a logging configuration of Airflow's, in which all lines are `ShownFormatter`'s, without colours."""
    made = copy.deepcopy(config)
    for formatter in made["formatters"].values():
        formatter["class"] = f"{__name__}.{ShownFormatter.__name__}"
    made["formatters"]["airflow_coloured"]["format"] = made["formatters"]["airflow"]["format"]
    return made
