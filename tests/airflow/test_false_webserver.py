"""A process that takes the webserver's port does not receive the admin's password."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from busco.embedded import airflow, processes
from busco.embedded.airflow_api import AirflowApi
from busco.settings import Settings
from tests.loopback import Handler, serving


def test_the_admin_s_password_is_sent_only_to_the_webserver_that_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    received: list[str] = []

    class Recorder(Handler):
        def do_GET(self) -> None:
            received.append(f"{self.path} {self.headers.get('Authorization')}")
            self.answer(200, b"{}", {"Content-Type": "application/json"})

        do_POST = do_GET

    settings = Settings(home=tmp_path, state_dir=tmp_path)
    with serving(Recorder) as url:
        monkeypatch.setattr(processes, "known_port", lambda *_: int(url.rpartition(":")[2]))
        processes.start(tmp_path, "webserver", ["/bin/sleep", "60"], os.environ, tmp_path)
        try:
            for call in (lambda: AirflowApi(settings).health(), lambda: AirflowApi(settings).call("GET", "dags")):
                with pytest.raises(ConnectionError, match="isn't listening"):
                    call()
            assert not airflow.healthy(AirflowApi(settings), "webserver")
            assert ("webserver", "unhealthy") in [(name, state.split()[0]) for name, state in airflow.status(settings)]
        finally:
            processes.stop(tmp_path, "webserver")
        with pytest.raises(ConnectionError, match="busco ui"):
            AirflowApi(settings).call("GET", "dags")
    assert received == []
