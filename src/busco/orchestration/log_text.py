"""Escapes control characters in Airflow's log lines, since task and service logs are also read in terminals."""

from __future__ import annotations

import copy
import logging
from typing import Any

from airflow.utils.log.timezone_aware import TimezoneAware

from busco.text import shown


class ShownFormatter(TimezoneAware):  # type: ignore[misc, unused-ignore]
    """Airflow's formatter, which also escapes control characters: log lines quote models, files and user input."""

    def format(self, record: logging.LogRecord) -> str:
        return shown(super().format(record))


def with_shown_text(config: dict[str, Any]) -> dict[str, Any]:
    """Returns a copy of an Airflow logging configuration that uses `ShownFormatter` for all lines and no colours."""
    made = copy.deepcopy(config)
    for formatter in made["formatters"].values():
        formatter["class"] = f"{__name__}.{ShownFormatter.__name__}"
    made["formatters"]["airflow_coloured"]["format"] = made["formatters"]["airflow"]["format"]
    return made
