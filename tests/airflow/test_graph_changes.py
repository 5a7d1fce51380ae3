"""Airflow parses a dbt project's DAG files soon after the project has been parsed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from airflow.models.dag import DagModel
from airflow.models.errors import ParseImportError

from busco.orchestration import graph_changes
from busco.orchestration.graph_changes import GraphChanges
from busco.settings import Settings
from tests.airflow.driver import Driver


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The times at which a parse was requested; `clock.now` is the present."""
    made: list[float] = []
    clock = Clock()
    monkeypatch.setattr(graph_changes, "time", clock)
    monkeypatch.setattr(graph_changes, "request_parse", lambda: made.append(clock.now) or ["x.py"])  # type: ignore[func-returns-value]
    return made


def run(changes: GraphChanges, seconds: float) -> None:
    clock = graph_changes.time
    for _ in range(int(seconds * 5)):
        changes.look()
        clock.now += 0.2  # type: ignore[attr-defined]


def replace(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".new")
    scratch.write_text(text)
    scratch.replace(path)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path, state_dir=tmp_path / "state", dbt_projects="other")


def test_a_new_manifest_or_message_of_any_project_is_requested_at_once_and_again(
    settings: Settings, requests: list[float]
) -> None:
    manifests = [one.manifest_path for one in settings.of_all_projects()]
    assert len(manifests) == 2
    replace(manifests[0], "1")
    changes = GraphChanges(settings)
    run(changes, 20)
    assert requests == pytest.approx([105.0], abs=1.0), "once, since a parse may have begun before the triggerer"
    for path in (*manifests, settings.parse_error_path):
        requests.clear()
        began = graph_changes.time.monotonic()
        replace(path, "2")
        run(changes, 20)
        assert requests == pytest.approx([began, began + 5], abs=1.0), path
    requests.clear()
    settings.parse_error_path.unlink()
    run(changes, 20)
    assert len(requests) == 2, "the message is gone"


def test_a_manifest_that_changes_again_is_requested_after_its_last_change(
    settings: Settings, requests: list[float]
) -> None:
    changes = GraphChanges(settings)
    run(changes, 20)
    requests.clear()
    for text in "123":
        replace(settings.manifest_path, text)
        run(changes, 2)
    last = graph_changes.time.monotonic() - 2
    run(changes, 20)
    assert requests[-1] == pytest.approx(last + 5, abs=1.0)
    assert len(requests) == 4


def test_a_requested_file_is_parsed_by_a_running_airflow(
    driver: Driver, sessions: Callable[[], AbstractContextManager[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph_changes, "create_session", sessions)
    monkeypatch.setattr(graph_changes.airflow_settings, "DAGS_FOLDER", str(driver.home / "dags"))

    def parsed() -> Any:
        with sessions() as session:
            return session.get(DagModel, "lakehouse").last_parsed_time

    before = parsed()
    assert [Path(file).name for file in graph_changes.request_parse()] == ["lakehouse.py", "parse_check.py"]
    graph_changes.request_parse()  # a file that was requested already
    driver.wait(lambda: parsed() > before, 30)


def test_a_file_with_an_import_error_is_requested_too(
    sessions: Callable[[], AbstractContextManager[Any]],
) -> None:
    with sessions() as session:
        session.add(ParseImportError(filename="/dags/broken.py", stacktrace="NameError"))
        found = {Path(file).name for file in graph_changes._of_projects(session)}
        session.rollback()
    assert found == {"broken.py", "lakehouse.py"}
