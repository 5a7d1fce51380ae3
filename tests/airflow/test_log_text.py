"""Airflow's logs contain no terminal escape sequences, whether they are read on a page or in a terminal."""

from __future__ import annotations

import base64
import logging
import logging.config
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from busco.embedded import airflow, airflow_logging
from busco.orchestration import logs

ROOT = Path(__file__).parents[2]


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


def test_the_webserver_s_access_log_escapes_what_clients_send(tmp_path: Path) -> None:
    """Runs gunicorn itself, configured as the platform configures it."""
    arguments = airflow._webserver_files(tmp_path)["GUNICORN_CMD_ARGS"]
    image = re.search(r'GUNICORN_CMD_ARGS="([^"]+)"', (ROOT / "Dockerfile.airflow").read_text())
    assert image is not None
    assert image[1] in arguments
    log = tmp_path / "access.log"
    app = tmp_path / "hello.py"
    app.write_text("def app(environ, start):\n    start('200 OK', [])\n    return [b'']\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        Path(sys.executable).parent / "gunicorn",
        "--access-logfile",
        log,
        "-b",
        f"127.0.0.1:{port}",
        "hello:app",
    ]
    variables = {**os.environ, "GUNICORN_CMD_ARGS": arguments}
    with subprocess.Popen(command, cwd=tmp_path, env=variables, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            while "Listening" not in process.stderr.readline():
                assert process.poll() is None
            with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
                user = base64.b64encode(b"\x1b]0;title\x07:x")
                headers = b"Host: x\r\nReferer: \x9b31m\r\nConnection: close\r\nAuthorization: Basic " + user
                client.sendall(b"GET / HTTP/1.1\r\n" + headers + b"\r\n\r\n")
                assert client.recv(20).startswith(b"HTTP/1.1 200")
        finally:
            process.terminate()
    written = log.read_text()
    assert not [char for char in written if char != "\n" and not char.isprintable()]
    assert r"\x1b]0;title\x07" in written
    assert r"\x9b31m" in written
