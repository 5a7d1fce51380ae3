"""Holds: `resume` names every run that could not be published, whatever happens at the same time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from busco.errors import BuscoError
from busco.lake import releases
from busco.lake.records import Current
from busco.lake.runs import Run
from tests.unit.lake import ENVIRONMENT, Lake
from tests.unit.memory_s3 import Killed


@pytest.fixture
def lake() -> Lake:
    """A lake on hold."""
    made = Lake()
    made.published()
    releases.rollback(made.store, ENVIRONMENT, made.live().release, "ana", "wrong prices")
    return made


def rolled_back(lake: Lake, who: str, reason: str) -> None:
    """Rolls back to the very first release, whatever is live."""
    first = [release.release for release in releases.history(lake.store, ENVIRONMENT)][-1]
    releases.rollback(lake.store, ENVIRONMENT, first, who, reason)


def at_every_call(lake: Lake, first: Callable[[], None], second: Callable[[], None]) -> Iterator[None]:
    """Yields once for each S3 call of `first`, including reads, after running `first` with all of `second` before it.

    The last time, `second` runs after `first`. Each repetition starts with the lake's current content, which is
    restored at the end.
    """
    objects = dict(lake.s3.objects)
    for at in itertools.count():
        lake.s3.objects = dict(objects)
        lake.s3.interrupt, lake.s3.interrupt_at = second, at
        first()
        if over := lake.s3.interrupt is not None:
            lake.s3.interrupt = None
            second()
        yield
        if over:
            break
    lake.s3.objects = objects


def waiting(lake: Lake) -> Run:
    """Returns a run that is ready to be published."""
    run = lake.pin()
    lake.build_all(run)
    return run


def current(lake: Lake) -> Current:
    found = lake.store.read(ENVIRONMENT.current, Current)
    assert found is not None
    return found


def resume(lake: Lake, request: str = "") -> tuple[str, ...] | None:
    """Returns the runs that a resume names, or None if there was no hold to lift."""
    hold = releases.resume(lake.store, ENVIRONMENT, request)
    return None if hold is None else hold.skipped


def outcome(lake: Lake, run: Run) -> str:
    try:
        return f"published {lake.publish(run).release}"
    except releases.OnHold as held:
        return str(held)


def test_P3_if_a_resume_and_a_publish_overlap_the_run_is_published_or_named(lake: Lake) -> None:
    run, seen = waiting(lake), set()
    results: dict[str, Any] = {}

    def publish() -> None:
        results["publish"] = outcome(lake, run)

    def lift() -> None:
        results["resume"] = resume(lake)

    for first, second in ((publish, lift), (lift, publish)):
        for _ in at_every_call(lake, first, second):
            held = results["publish"].startswith("put on hold")
            assert results["resume"] == ((run.name,) if held else ()), results
            assert held or lake.live().run == run.name
            seen.add(held)
    assert seen == {True, False}


def test_P8_if_a_rollback_and_a_publish_overlap_the_run_is_rolled_back_or_named() -> None:
    lake = Lake()
    lake.published()
    lake.deliveries += 1
    run, seen = waiting(lake), set()
    first = lake.live().release
    outcomes: list[str] = []

    def publish() -> None:
        outcomes.append(outcome(lake, run))

    for _ in at_every_call(lake, publish, lambda: rolled_back(lake, "ana", "wrong")):
        assert lake.live().rolled_back_to == first
        assert current(lake).hold is not None
        published = any(release.run == run.name for release in releases.history(lake.store, ENVIRONMENT))
        assert outcomes[-1].startswith("published" if published else "put on hold")
        assert resume(lake) == (() if published else (run.name,))
        seen.add(published)
    assert seen == {True, False}


def test_P8_a_second_rollback_keeps_the_names_of_the_runs_that_were_held_back(lake: Lake) -> None:
    run = waiting(lake)
    assert outcome(lake, run).startswith("put on hold")
    rolled_back(lake, "bob", "wrong currency")
    assert resume(lake) == (run.name,)


def test_P3_a_run_that_is_cleared_during_a_hold_is_named_once(lake: Lake) -> None:
    run = waiting(lake)
    for _ in range(2):
        assert outcome(lake, run).startswith("put on hold")
    again = lake.pin(run=run.name, epoch=2)
    lake.build_all(again)
    assert outcome(lake, again).startswith("put on hold")
    assert resume(lake) == (run.name,)
    assert outcome(lake, again).startswith("published")


@pytest.mark.parametrize("written", [False, True])
def test_P8_a_resume_that_was_killed_names_the_runs_when_it_is_retried(lake: Lake, written: bool) -> None:
    run = waiting(lake)
    assert outcome(lake, run).startswith("put on hold")
    lake.s3.kill_at, lake.s3.kill_after = 0, written
    with pytest.raises(Killed):
        resume(lake, "mine")
    assert (current(lake).hold is None) == written
    assert resume(lake, "mine") == (run.name,)
    assert outcome(lake, run).startswith("published")
    assert resume(lake, "mine") == (run.name,), "even after it has been published"
    assert resume(lake, "another") is None


def test_P8_two_concurrent_resumes_both_name_the_runs(lake: Lake) -> None:
    run, named = waiting(lake), []
    assert outcome(lake, run).startswith("put on hold")
    lake.s3.interrupt = lambda: named.append(resume(lake, "one"))
    named.append(resume(lake, "two"))
    assert named == [(run.name,), (run.name,)]


def test_P8_a_hold_that_was_set_during_a_resume_stays_in_effect(lake: Lake) -> None:
    def replaced() -> None:
        resume(lake, "bob's")
        rolled_back(lake, "bob", "wrong currency")

    lake.s3.interrupt = replaced
    with pytest.raises(BuscoError, match=r"bob: wrong currency; the hold set by ana \(wrong prices\) was lifted"):
        resume(lake, "mine")
    hold = current(lake).hold
    assert hold is not None
    assert hold.reason == "wrong currency"


def test_P8_a_retried_resume_does_not_lift_a_hold_that_was_set_in_the_meantime(lake: Lake) -> None:
    """A task whose worker died after the write is retried; a hold that was set in the meantime stays in effect."""
    run = waiting(lake)
    assert outcome(lake, run).startswith("put on hold")
    assert resume(lake, "mine") == (run.name,)
    rolled_back(lake, "bob", "wrong currency")
    with pytest.raises(BuscoError, match=f"bob: wrong currency.*skipped during it are: {run.name}"):
        resume(lake, "mine")
    assert current(lake).hold is not None
    assert resume(lake, "bob's") == ()
