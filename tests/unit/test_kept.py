"""Listings are kept, so that they take a bounded share of the time."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from busco.lake.kept import Kept


class Clock:
    """Time that passes only when something is determined."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cost: float) -> None:
        self.now, self.cost, self.calls = 1000.0, cost, 0
        monkeypatch.setattr("busco.lake.kept.time", SimpleNamespace(monotonic=lambda: self.now))

    def determine(self) -> int:
        self.now += self.cost
        self.calls += 1
        return self.calls


@pytest.mark.parametrize(("cost", "kept"), [(0.1, 20.0), (5.0, 100.0), (60.0, 300.0)])
def test_a_result_is_kept_in_proportion_to_its_cost(monkeypatch: pytest.MonkeyPatch, cost: float, kept: float) -> None:
    clock, results = Clock(monkeypatch, cost), Kept()
    assert results.get("a", clock.determine) == 1
    clock.now += kept - 0.5
    assert results.get("a", clock.determine) == 1
    clock.now += 1
    assert results.get("a", clock.determine) == 2
    assert results.get("b", clock.determine) == 3


def test_what_is_cleared_is_determined_again(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, results = Clock(monkeypatch, 1.0), Kept()
    results.get("a", clock.determine)
    results.clear()
    assert results.get("a", clock.determine) == 2


def test_what_was_determined_before_something_changed_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, results = Clock(monkeypatch, 1.0), Kept()

    def determine() -> int:
        results.clear()  # somebody announces a change meanwhile
        return clock.determine()

    assert results.get("a", determine) == 1
    assert results.get("a", clock.determine) == 2


def test_results_that_nobody_asks_for_any_more_do_not_accumulate(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, results = Clock(monkeypatch, 1.0), Kept()
    for number in range(100):
        results.get(number, clock.determine)
        clock.now += 30
    assert len(results._results) == 1
