"""The health check of the container that serves the local AWS."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from busco.embedded.health import record
from tests.loopback import Handler, serving


class Identity(Handler):
    status = 200

    def do_GET(self) -> None:
        self.answer(self.status if self.path.startswith("/_busco/identity?") else 404)


class Failing(Identity):
    status = 500


def check(state: Path) -> int:
    """Runs the check as Docker does, and returns its exit status."""
    command = [sys.executable, "-X", "importtime", "-m", "busco.embedded.health"]
    done = subprocess.run(command, env={**os.environ, "BUSCO_STATE_DIR": str(state)}, capture_output=True, text=True)
    assert "boto" not in done.stderr
    return done.returncode


def write(state: Path, pid: int, endpoint: str) -> None:
    record(state).parent.mkdir(parents=True, exist_ok=True)
    record(state).write_text(json.dumps({"pid": pid, "endpoint": endpoint}))


def test_it_is_ready_only_while_the_process_is_alive_and_answers(tmp_path: Path) -> None:
    assert check(tmp_path) == 1
    with serving(Identity) as url:
        write(tmp_path, os.getpid(), url)
        assert check(tmp_path) == 0
        ended = subprocess.Popen([sys.executable, "-c", ""])
        ended.wait()
        write(tmp_path, ended.pid, url)
        assert check(tmp_path) == 1
        write(tmp_path, os.getpid(), "http://127.0.0.1:9")
        assert check(tmp_path) == 1


@pytest.mark.parametrize("content", ["", "{}", '{"pid": "x"}'])
def test_a_record_that_is_being_written_is_not_ready(tmp_path: Path, content: str) -> None:
    record(tmp_path).parent.mkdir(parents=True)
    record(tmp_path).write_text(content)
    assert check(tmp_path) == 1


def test_a_local_aws_that_answers_with_an_error_is_not_ready(tmp_path: Path) -> None:
    with serving(Failing) as url:
        write(tmp_path, os.getpid(), url)
        assert check(tmp_path) == 1
