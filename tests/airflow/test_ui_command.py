"""What `busco ui` prints."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from busco.cli.platform import ui_command
from busco.embedded import airflow, aws, demo
from busco.settings import get_settings

AIRFLOW, AWS = "http://127.0.0.1:8080", "http://127.0.0.1:4566"


def test_each_address_is_printed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def child(command: list[str], stdout: Any = None, **_: Any) -> subprocess.CompletedProcess[str]:
        """Stands in for `busco aws up`, which prints the endpoint, and for `busco dbt parse`."""
        if stdout is not subprocess.DEVNULL:
            print(AWS if "aws" in command else "parsed", file=stdout or sys.stdout)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setenv("BUSCO_STATE_DIR", str(tmp_path))
    monkeypatch.setattr(demo.subprocess, "run", child)
    monkeypatch.setattr(airflow, "up", lambda *_: AIRFLOW)
    monkeypatch.setattr(aws, "status", lambda *_: [("endpoint", AWS)])
    get_settings.cache_clear()
    try:
        printed = CliRunner().invoke(ui_command).output
    finally:
        get_settings.cache_clear()
    assert printed.count(f"{AIRFLOW} ") == printed.count(f"{AIRFLOW}/catalog/ ") == printed.count(AWS) == 1, printed
    assert [line.split()[0] for line in printed.splitlines() if "http" in line] == ["Airflow", "catalog", "local"]
