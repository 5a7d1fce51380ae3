"""Holds: a run that could not be published is named by `resume`, whatever happens at the same time."""

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
    """Whatever is live is rolled back to the very first release."""
    first = [release.release for release in releases.history(lake.store, ENVIRONMENT)][-1]
    releases.rollback(lake.store, ENVIRONMENT, first, who, reason)


def at_every_call(lake: Lake, first: Callable[[], None], second: Callable[[], None]) -> Iterator[None]:
    """For each call that `first` makes to S3, reads included: both, `second` as a whole before that call. Each starts
    from the lake as it is now, and so does what follows; the last time, `second` comes after `first`."""
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
    """A run that is ready to be published."""
    run = lake.pin()
    lake.build_all(run)
    return run


def current(lake: Lake) -> Current:
    found = lake.store.read(ENVIRONMENT.current, Current)
    assert found is not None
    return found


def resume(lake: Lake, request: str = "") -> tuple[str, ...] | None:
    """The runs that a resume names, None where it ended no hold."""
    hold = releases.resume(lake.store, ENVIRONMENT, request)
    return None if hold is None else hold.skipped


def outcome(lake: Lake, run: Run) -> str:
    try:
        return f"published {lake.publish(run).release}"
    except releases.OnHold as held:
        return str(held)


def test_P3_a_resume_at_any_moment_of_a_publish_publishes_the_run_or_names_it(lake: Lake) -> None:
    run, seen = waiting(lake), set()
    said: dict[str, Any] = {}

    def publish() -> None:
        said["publish"] = outcome(lake, run)

    def lift() -> None:
        said["resume"] = resume(lake)

    for first, second in ((publish, lift), (lift, publish)):
        for _ in at_every_call(lake, first, second):
            held = said["publish"].startswith("on hold")
            assert said["resume"] == ((run.name,) if held else ()), said
            assert held or lake.live().run == run.name
            seen.add(held)
    assert seen == {True, False}


def test_P8_a_rollback_at_any_moment_of_a_publish_holds_it_and_keeps_its_name() -> None:
    lake = Lake()
    lake.published()
    lake.deliveries += 1
    run, seen = waiting(lake), set()
    first = lake.live().release
    said: list[str] = []

    def publish() -> None:
        said.append(outcome(lake, run))

    for _ in at_every_call(lake, publish, lambda: rolled_back(lake, "ana", "wrong")):
        assert lake.live().rolled_back_to == first
        assert current(lake).hold is not None
        published = any(release.run == run.name for release in releases.history(lake.store, ENVIRONMENT))
        assert said[-1].startswith("published" if published else "on hold")
        assert resume(lake) == (() if published else (run.name,))
        seen.add(published)
    assert seen == {True, False}


def test_P8_a_second_rollback_keeps_the_names_of_those_that_were_held_back(lake: Lake) -> None:
    run = waiting(lake)
    assert outcome(lake, run).startswith("on hold")
    rolled_back(lake, "bob", "wrong currency")
    assert resume(lake) == (run.name,)


def test_P3_a_run_that_is_cleared_on_hold_is_named_once(lake: Lake) -> None:
    run = waiting(lake)
    for _ in range(2):
        assert outcome(lake, run).startswith("on hold")
    again = lake.pin(run=run.name, epoch=2)
    lake.build_all(again)
    assert outcome(lake, again).startswith("on hold")
    assert resume(lake) == (run.name,)
    assert outcome(lake, again).startswith("published")


@pytest.mark.parametrize("written", [False, True])
def test_P8_a_resume_that_was_killed_names_the_runs_when_it_is_repeated(lake: Lake, written: bool) -> None:
    run = waiting(lake)
    assert outcome(lake, run).startswith("on hold")
    lake.s3.kill_at, lake.s3.kill_after = 0, written
    with pytest.raises(Killed):
        resume(lake, "mine")
    assert (current(lake).hold is None) == written
    assert resume(lake, "mine") == (run.name,)
    assert outcome(lake, run).startswith("published")
    assert resume(lake, "mine") == (run.name,), "also when it was published meanwhile"
    assert resume(lake, "another") is None


def test_P8_of_two_resumes_at_once_both_name_the_runs(lake: Lake) -> None:
    run, named = waiting(lake), []
    assert outcome(lake, run).startswith("on hold")
    lake.s3.interrupt = lambda: named.append(resume(lake, "one"))
    named.append(resume(lake, "two"))
    assert named == [(run.name,), (run.name,)]


def test_P8_a_hold_that_was_set_during_a_resume_stays(lake: Lake) -> None:
    def replaced() -> None:
        resume(lake, "bob's")
        rolled_back(lake, "bob", "wrong currency")

    lake.s3.interrupt = replaced
    with pytest.raises(BuscoError, match=r"bob: wrong currency; the hold by ana \(wrong prices\) was lifted"):
        resume(lake, "mine")
    hold = current(lake).hold
    assert hold is not None
    assert hold.reason == "wrong currency"


def test_P8_a_resume_that_is_repeated_leaves_a_hold_that_was_set_since(lake: Lake) -> None:
    """A task whose worker died after the write is retried; what was rolled back meanwhile stays on hold."""
    run = waiting(lake)
    assert outcome(lake, run).startswith("on hold")
    assert resume(lake, "mine") == (run.name,)
    rolled_back(lake, "bob", "wrong currency")
    with pytest.raises(BuscoError, match=f"bob: wrong currency.*skipped during it are: {run.name}"):
        resume(lake, "mine")
    assert current(lake).hold is not None
    assert resume(lake, "bob's") == ()
