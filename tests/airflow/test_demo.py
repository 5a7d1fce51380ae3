"""Which run `busco demo` follows: the one that its upload has started."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from busco.embedded import demo
from busco.settings import Settings


class Airflow:
    """The DAG's runs at each look, and whether deliveries are unpublished."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.looks: list[list[str]] = []
        self.unpublished: dict[str, int] = {"bronze.orders": 1}
        self.now = 0.0
        monkeypatch.setattr(demo, "client", lambda *_: None)
        monkeypatch.setattr(demo, "Project", SimpleNamespace(of=lambda _: SimpleNamespace(identity="p", contracts=())))
        monkeypatch.setattr(demo.pending, "published", lambda *_: None)
        monkeypatch.setattr(demo.pending, "unpublished", lambda *_: self.unpublished)
        monkeypatch.setattr(demo, "time", SimpleNamespace(monotonic=lambda: self.now, sleep=self.sleep))

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def dag_runs(self, _: str) -> list[dict[str, Any]]:
        found = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        return [{"dag_run_id": run} for run in found]

    def started(self) -> str | None:
        return demo.started_run(Settings(lake_bucket="lake"), self, {"earlier"})


@pytest.fixture
def airflow(monkeypatch: pytest.MonkeyPatch) -> Airflow:
    return Airflow(monkeypatch)


def test_the_run_that_the_upload_starts_is_awaited(airflow: Airflow) -> None:
    airflow.looks = [["earlier"], ["earlier"], ["earlier", "by the upload"]]
    assert airflow.started() == "by the upload"
    assert airflow.now == 1.0


def test_nothing_is_awaited_if_everything_is_published_and_nothing_for_ever(airflow: Airflow) -> None:
    airflow.looks = [["earlier"]]
    assert airflow.started() is None
    assert airflow.now > 10
    airflow.now, airflow.unpublished = 0.0, {}
    assert airflow.started() is None
    assert airflow.now == 0.0
