"""When a runner counts as hung."""

from __future__ import annotations

from busco.orchestration.silence import Silence


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def poll(silence: Silence, clock: Clock, beats: dict[int, str], seconds: float, every: float = 1.0) -> list[int]:
    """Polls for so many seconds. Returns all runners that were reported as silent, in order."""
    found = []
    for _ in range(int(seconds / every)):
        clock.now += every
        found += silence.hear(beats)
    return found


def test_a_runner_is_silent_when_its_heartbeat_has_not_changed_for_the_limit() -> None:
    clock = Clock()
    silence = Silence(10, clock)
    assert poll(silence, clock, {1: "a", 2: "a"}, 10) == []
    assert poll(silence, clock, {1: "b", 2: "a"}, 1) == [2]
    # it is reported again after it has been silent for the limit once more
    assert poll(silence, clock, {1: "b", 2: "a"}, 9) == []
    assert poll(silence, clock, {1: "c", 2: "a"}, 1) == [2]


def test_time_without_polls_hardly_counts() -> None:
    clock = Clock()
    silence = Silence(10, clock)
    silence.hear({1: "a"})
    clock.now += 3600
    assert silence.hear({1: "a"}) == []
    assert poll(silence, clock, {1: "a"}, 7) == []
    assert poll(silence, clock, {1: "a"}, 1) == [1]


def test_without_a_limit_no_runner_is_silent() -> None:
    clock = Clock()
    assert poll(Silence(0, clock), clock, {1: "a"}, 100_000, 1000) == []
