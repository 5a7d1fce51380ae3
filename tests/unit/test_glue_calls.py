"""Calls to Glue: the rate that they adapt to what Glue accepts, in simulated time, and what follows from each error."""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, ReadTimeoutError

from busco.catalog.glue_calls import TRIES, Calls, Rate, Unanswered, Unavailable, client_options
from tests.unit.memory_glue import refusal

LATENCY = 0.03


class Limit(Protocol):
    """Decides whether Glue accepts a call at a time, in seconds."""

    def accepts(self, now: float) -> bool: ...


class Bucket:
    """A token bucket: `rate` calls a second, and up to `burst` of them at once. A refused call takes no token."""

    def __init__(self, rate: float, burst: float) -> None:
        self.rate, self.burst, self.tokens, self.at = rate, burst, burst, 0.0

    def accepts(self, now: float) -> bool:
        self.tokens, self.at = min(self.burst, self.tokens + (now - self.at) * self.rate), now
        if self.tokens < 1 - 1e-9:
            return False
        self.tokens -= 1
        return True


class Window:
    """At most `most` calls within any second. `all_count`: refused calls count too."""

    def __init__(self, most: int, all_count: bool = False) -> None:
        self.most, self.all_count = most, all_count
        self.calls: deque[float] = deque()

    def accepts(self, now: float) -> bool:
        while self.calls and self.calls[0] <= now - 1:
            self.calls.popleft()
        accepted = len(self.calls) < self.most
        if accepted or self.all_count:
            self.calls.append(now)
        return accepted


class Seconds:
    """At most `most` calls in each second of the clock; refused calls count too."""

    def __init__(self, most: int) -> None:
        self.most, self.second, self.count = most, -1, 0

    def accepts(self, now: float) -> bool:
        if int(now) != self.second:
            self.second, self.count = int(now), 0
        self.count += 1
        return self.count <= self.most


def simulate(limit: Limit, calls: int, at_once: int) -> tuple[float, int]:
    """Makes calls from `at_once` threads; returns the seconds until all were accepted, and how many were throttled."""
    rate, events, order = Rate(), [], itertools.count()
    ready, later, throttled, now, ticking = min(at_once, calls), max(0, calls - at_once), 0, 0.0, False
    while True:
        while ready and not rate.pause(now):
            rate.sent(now)
            heapq.heappush(events, (now + LATENCY, next(order), now, limit.accepts(now)))
            ready -= 1
        if ready and not ticking:
            heapq.heappush(events, (now + rate.pause(now), next(order), None, True))
            ticking = True
        if not events:
            return now, throttled
        now, _, sent, accepted = heapq.heappop(events)
        if sent is None:
            ticking = False
        elif accepted:
            rate.accepted(now)
            ready, later = ready + bool(later), max(0, later - 1)
        else:
            rate.throttled(sent, now)
            ready, throttled = ready + 1, throttled + 1


@pytest.mark.parametrize("calls", [23, 103, 313, 1013])
@pytest.mark.parametrize("at_once", [8, 32, 128])
@pytest.mark.parametrize(
    "limit",
    [
        pytest.param(lambda: Bucket(20, 20), id="bucket of 20"),
        pytest.param(lambda: Bucket(20, 5), id="bucket of 5"),
        pytest.param(lambda: Bucket(20, 100), id="bucket of 100"),
        pytest.param(lambda: Bucket(2, 2), id="2 a second"),
        pytest.param(lambda: Bucket(200, 200), id="200 a second"),
        pytest.param(lambda: Bucket(100, 20), id="100 a second, bucket of 20"),
        pytest.param(lambda: Window(20), id="window"),
        pytest.param(lambda: Window(20, all_count=True), id="window with refused calls"),
        pytest.param(lambda: Seconds(20), id="clock seconds"),
    ],
)
def test_throttled_calls_take_at_most_a_fifth_longer_than_the_limit_requires(
    limit: Callable[[], Any], calls: int, at_once: int
) -> None:
    made = limit()
    seconds, throttled = simulate(made, calls, at_once)
    a_second = getattr(made, "rate", 0) or made.most
    assert seconds <= 1.2 * calls / a_second
    # those that are under way before the limit is known, some until the rate is right, then one whenever it is too high
    assert throttled <= at_once + a_second + 20 + 0.3 * calls


def test_calls_are_not_limited_until_one_is_throttled() -> None:
    assert simulate(Bucket(1e9, 1e9), 1000, 32) == (pytest.approx(32 * LATENCY), 0)


class Clock:
    """Time that passes only in `sleep`, and by `LATENCY` in each call."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Client:
    """A client with one operation, `get_table`, which raises the given errors and then returns; counts its calls."""

    def __init__(self, clock: Clock, *errors: Exception) -> None:
        self.clock, self.errors, self.count = clock, list(errors), 0

    def get_table(self, **request: Any) -> dict[str, Any]:
        self.count += 1
        self.clock.now += LATENCY
        if self.errors:
            raise self.errors.pop(0)
        return request


def calls_of(*errors: Exception) -> tuple[Calls, Client, Clock]:
    clock = Clock()
    client = Client(clock, *errors)
    return Calls(client, 4, clock, clock.sleep), client, clock


def internal() -> ClientError:
    return ClientError({"Error": {"Code": "X"}, "ResponseMetadata": {"HTTPStatusCode": 500}}, "GetTable")


@pytest.mark.parametrize(
    "error", [ReadTimeoutError(endpoint_url="x"), refusal("OperationTimeoutException"), internal()]
)
def test_a_write_without_an_answer_is_not_repeated_and_a_read_is(error: Exception) -> None:
    calls, client, _ = calls_of(error)
    with pytest.raises(Unanswered):
        calls.write("get_table", Name="t")
    assert client.count == 1
    calls, client, _ = calls_of(error, error)
    assert calls.read("get_table", Name="t") == {"Name": "t"}
    assert client.count == 3


def test_a_read_gives_up_after_some_attempts_with_botocore_s_error() -> None:
    error = EndpointConnectionError(endpoint_url="x")
    calls, client, clock = calls_of(*[error] * 100)
    with pytest.raises(Unavailable) as raised:
        calls.read("get_table")
    assert raised.value.error is error
    assert client.count == TRIES
    assert 5 < clock.now - 1000 < 30


def test_a_refused_call_is_not_repeated() -> None:
    calls, client, _ = calls_of(refusal("AccessDeniedException"))
    with pytest.raises(ClientError, match="AccessDenied"):
        calls.read("get_table")
    assert client.count == 1


def test_throttled_calls_are_repeated_and_fail_after_two_minutes_without_an_accepted_call() -> None:
    calls, client, _ = calls_of(*[refusal("ThrottlingException")] * 20)
    assert calls.write("get_table", Name="t") == {"Name": "t"}
    assert client.count == 21
    calls, client, clock = calls_of(*[refusal("ThrottlingException")] * 10_000)
    with pytest.raises(Unavailable, match="Throttling"):
        calls.read("get_table")
    assert 120 < clock.now - 1000 < 125
    assert client.count < 120, "the rate goes down while nothing is accepted"


def test_a_call_that_is_throttled_after_two_minutes_without_any_call_is_repeated() -> None:
    throttled = refusal("ThrottlingException")
    calls, client, clock = calls_of(throttled, throttled)
    clock.sleep(121)
    assert calls.write("get_table", Name="t") == {"Name": "t"}
    clock.sleep(121)
    client.errors = [throttled]
    assert calls.write("get_table", Name="t") == {"Name": "t"}


def test_work_is_done_at_once_and_a_refusal_for_one_item_does_not_keep_the_others_from_it() -> None:
    calls = Calls(None, 4)
    meeting, done = threading.Barrier(4, timeout=30), []

    def work(item: int) -> int:
        meeting.wait()
        if item == 1:
            raise refusal("InvalidInputException")
        done.append(item)
        return item * item

    with pytest.raises(ClientError, match="InvalidInput"):
        calls.each(work, range(8))
    assert sorted(done) == [0, 2, 3, 4, 5, 6, 7]
    assert calls.each(lambda item: item * item, range(4)) == [0, 1, 4, 9]


def test_any_other_error_ends_the_work_once_no_item_is_being_worked_on() -> None:
    calls = Calls(None, 2)
    failed, begun, ended = threading.Event(), [], []

    def work(item: int) -> None:
        begun.append(item)
        if item == 0:
            failed.set()
            raise Unavailable(refusal("ThrottlingException"))
        failed.wait(30)
        time.sleep(0.001)
        ended.append(item)

    with pytest.raises(Unavailable):
        calls.each(work, range(10_000))
    assert sorted(ended) == sorted(set(begun) - {0})
    assert len(begun) < 10_000


def test_the_client_s_own_retries_are_off_and_each_thread_has_a_connection() -> None:
    from busco.aws import publisher_client
    from busco.settings import Settings

    settings = Settings(publisher_role_arn="")
    config = publisher_client("glue", settings, **client_options(77)).meta.config
    assert config.retries["total_max_attempts"] == 1
    assert config.max_pool_connections == 77
