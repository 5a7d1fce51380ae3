"""What is read in Airflow's logs, by a page or in a terminal, has no orders to a terminal."""

from __future__ import annotations

import logging
import logging.config
from pathlib import Path
from types import ModuleType

import pytest

from busco.embedded import airflow_logging
from busco.orchestration import logs


@pytest.mark.parametrize("module", [logs, airflow_logging], ids=["in a container", "on this machine"])
@pytest.mark.parametrize("handler", ["task", "console", "processor"])
def test_each_line_of_airflow_s_logs_is_escaped(module: ModuleType, handler: str, tmp_path: Path) -> None:
    config = module.LOGGING_CONFIG
    name = config["handlers"][handler]["formatter"]
    file = {"class": "logging.FileHandler", "filename": str(tmp_path / "log"), "formatter": name}
    logging.config.dictConfig(
        {"version": 1, "disable_existing_loggers": False, "formatters": config["formatters"], "handlers": {"x": file},
         "loggers": {"of a test": {"handlers": ["x"], "propagate": False}}}
    )  # fmt: skip
    logger = logging.getLogger("of a test")
    try:
        raise RuntimeError("\x1b]0;title\x07")
    except RuntimeError:
        logger.exception("why: %s\nsecond line", "\x1b[2J\x9b31m\u202e\r")
    written = (tmp_path / "log").read_text()
    assert r"why: \x1b[2J\x9b31m\u202e\r" in written
    assert r"RuntimeError: \x1b]0;title\x07" in written
    assert "\nsecond line\n" in written
    assert not [char for char in written if char != "\n" and not char.isprintable()]
