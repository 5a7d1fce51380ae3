"""Airflow parses DAG files soon after they, or their dbt project, have changed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.models.dag import DagModel
from airflow.models.errors import ParseImportError

from busco.orchestration import graph_changes
from busco.orchestration.graph_changes import GraphChanges
from busco.settings import Settings
from tests.airflow.driver import Driver


class World:
    """Airflow with one DAG file of a project and another one, in simulated time. A parse takes `parse_takes` seconds; a
    request for a file that is being parsed is dropped."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.parse_takes, self.errors = 100.0, 1.0, list[str]()
        self.dags, self.state = home / "dags", home / "state"
        self.project, self.other, self.check = (self.dags / n for n in ("lakehouse.py", "other.py", "parse_check.py"))
        for file in (self.project, self.other, self.check):
            replace(file, "")
        self.parsed: dict[str, datetime] = {}
        self.requests: list[tuple[float, str]] = []
        self.parsing: dict[str, tuple[float, str]] = {}
        self.read: dict[str, str] = {}
        for name, function in {
            "time": self,
            "_of_projects": lambda: [str(self.project), str(self.check)],
            "_parsed": lambda _: self.parsed,
            "_request": self.request,
            "_not_imported": lambda: self.errors,
        }.items():
            monkeypatch.setattr(graph_changes, name, function)
        monkeypatch.setattr(graph_changes, "dags_folder", lambda: self.dags)
        self.settings = Settings(home=home, state_dir=self.state, dbt_projects="other")
        self.changes = GraphChanges(self.settings)
        self.run(30)
        self.requests.clear()

    def monotonic(self) -> float:
        return self.now

    def request(self, file: str) -> None:
        self.requests.append((self.now, Path(file).name))
        if file not in self.parsing:
            self.begin(file)

    def begin(self, file: str) -> None:
        manifest = self.state / "manifest.json"
        content = Path(file).read_text() + (manifest.read_text() if manifest.is_file() else "")
        self.parsing[file] = (self.now + self.parse_takes, content)

    def run(self, seconds: float) -> None:
        for _ in range(int(seconds * 5)):
            self.changes.look()
            self.now += 0.2
            for file, (ends, content) in list(self.parsing.items()):
                if self.now >= ends:
                    del self.parsing[file]
                    self.read[file] = content
                    if file != str(self.check):
                        self.parsed[file] = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.now)

    def times(self, file: Path) -> list[float]:
        """Returns when a file was requested, in seconds."""
        return [when for when, name in self.requests if name == file.name]


def replace(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".new")
    scratch.write_text(text)
    scratch.replace(path)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


@pytest.mark.parametrize("file", ["manifest.json", "projects/bakery/manifest.json", "parse_error.txt"])
def test_a_change_of_any_project_or_of_dbt_s_message_is_requested_until_two_parses_have_ended(
    world: World, file: str
) -> None:
    for content in ("1", "2", ""):
        world.requests.clear()
        began = world.now
        if content:
            replace(world.state / file, content)
        else:
            (world.state / file).unlink()
        world.run(90)
        assert world.times(world.project) == pytest.approx([began, began + 5], abs=2)
        # the file defines no DAG, so nobody knows when it is parsed
        assert world.times(world.check) == pytest.approx([began + s for s in graph_changes._REQUESTS], abs=2)
        assert world.times(world.other) == []


def test_a_changed_dag_file_is_requested_alone(world: World) -> None:
    replace(world.other, "changed")
    began = world.now
    world.run(90)
    assert world.times(world.other) == pytest.approx([began, began + 5], abs=2)
    assert world.times(world.project) == []
    replace(world.dags / "new.py", "")
    world.other.unlink()
    world.requests.clear()
    world.run(90)
    assert world.requests == [], "Airflow itself notices new and deleted files"


@pytest.mark.parametrize("takes", [1.0, 4.0, 9.0, 20.0])
@pytest.mark.parametrize("ahead", [0.0, 0.5, 2.0, 8.0])
def test_the_last_change_is_parsed_even_if_airflow_was_parsing_at_that_moment(
    world: World, takes: float, ahead: float
) -> None:
    world.parse_takes = takes
    for content in "abc":
        world.begin(str(world.project))
        world.run(ahead)
        replace(world.state / "manifest.json", content)
        world.run(1)
    world.run(90)
    assert world.read[str(world.project)] == "c"


def test_files_that_could_not_be_imported_are_tried_again_every_thirty_seconds(world: World) -> None:
    world.errors = [str(world.other)]
    began = world.now
    world.run(100)
    assert len(world.times(world.other)) in (3, 4)
    assert world.times(world.other)[0] - began < 31


def test_a_changed_graph_is_parsed_by_a_running_airflow(
    driver: Driver, sessions: Callable[[], AbstractContextManager[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph_changes, "create_session", sessions)
    monkeypatch.setattr(graph_changes, "dags_folder", lambda: driver.home / "dags")

    def parsed() -> Any:
        with sessions() as session:
            return session.get(DagModel, "lakehouse").last_parsed_time

    before = parsed()
    found = graph_changes._of_projects()
    assert [Path(file).name for file in found] == ["lakehouse.py", "parse_check.py"]
    assert graph_changes._parsed(found) == {found[0]: before}
    for file in (*found, *found):  # the second time, they were requested already
        graph_changes._request(file)
    driver.wait(lambda: parsed() > before, 30)


def test_deleted_files_are_not_requested_and_those_with_import_errors_are(
    driver: Driver, sessions: Callable[[], AbstractContextManager[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph_changes, "create_session", sessions)
    broken = driver.home / "src" / "broken.py"
    with sessions() as session:
        for file in (broken, driver.home / "gone.py"):
            session.add(ParseImportError(filename=str(file), stacktrace="NameError"))
    try:
        assert graph_changes._not_imported() == []
        broken.parent.mkdir(exist_ok=True)
        broken.touch()
        assert graph_changes._not_imported() == [str(broken)]
    finally:
        with sessions() as session:
            session.query(ParseImportError).filter(ParseImportError.stacktrace == "NameError").delete()
