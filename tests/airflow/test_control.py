"""What the tasks of `operations` do with a lake, without Airflow around them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from airflow.exceptions import AirflowFailException

from busco.lake import releases
from busco.orchestration import control
from tests.unit.lake import ENVIRONMENT, Lake


@pytest.fixture
def lake(monkeypatch: pytest.MonkeyPatch) -> Lake:
    """A lake on hold, with a run that was held back."""
    made = Lake()
    made.published()
    releases.rollback(made.store, ENVIRONMENT, made.live().release, "ana", "wrong prices")
    run = made.pin(run="held_back")
    made.build_all(run)
    with pytest.raises(releases.Skipped):
        made.publish(run)
    monkeypatch.setattr(control, "_lake", lambda: (None, made.store, ENVIRONMENT))
    return made


def try_of(run_id: str) -> dict[str, Any]:
    return {"dag_run": SimpleNamespace(dag_id="operations", run_id=run_id)}


def test_a_resume_that_is_tried_again_names_the_same_runs_and_a_later_one_finds_no_hold(lake: Lake) -> None:
    assert [control.resume(try_of("one")) for _ in range(2)] == [["held_back"]] * 2
    assert control.resume(try_of("two")) == []


def test_a_resume_that_is_tried_again_fails_where_publishing_is_on_hold_again(lake: Lake) -> None:
    control.resume(try_of("one"))
    releases.rollback(lake.store, ENVIRONMENT, lake.live().release, "bob", "wrong currency")
    with pytest.raises(AirflowFailException, match=r"bob: wrong currency.*are: held_back"):
        control.resume(try_of("one"))
    assert control.resume(try_of("two")) == []


@pytest.mark.parametrize("select", ["fct --record-timing-info /tmp/x", "fct\n--vars {}", ["fct", "--target-path", "/"]])
def test_a_run_whose_selection_has_an_option_fails_before_anything_is_started_for_it(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, select: Any
) -> None:
    settings = SimpleNamespace(of_project=lambda folder: settings)
    monkeypatch.setattr(control, "_lake", lambda: (settings, lake.store, ENVIRONMENT))
    monkeypatch.setattr(control, "selected", lambda *given: pytest.fail(f"started for {given[2]}"))
    with pytest.raises(AirflowFailException, match="begins with a dash|is a text"):
        control.pin("lakehouse", "manual", 1, "1", select, False)
