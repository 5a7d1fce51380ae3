"""What the platform measures for CloudWatch, part by part. test_events.py measures a running platform."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import EndpointConnectionError

from busco.lake import compose, layout, releases
from busco.lake.deliveries import Contract
from busco.orchestration import metrics
from busco.orchestration.metrics import METRICS, Metric, OfLake, OfMachine, measured, one, put, serve
from busco.orchestration.service_health import Health, unhealthy
from busco.settings import Settings
from tests.unit import lake as of_tests
from tests.unit.lake import Lake

START = datetime(2026, 1, 1, 12, tzinfo=UTC)


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(of_tests, "utc_now", made)
    monkeypatch.setattr(compose, "utc_now", made)
    monkeypatch.setattr(releases, "utc_now", made)
    return made


@pytest.fixture
def lake(clock: Clock) -> Lake:
    made = Lake()
    made.s3.now = clock
    return made


PROJECTS: Any = [
    SimpleNamespace(
        identity="busco",
        contracts=(Contract("src", "b", of_tests.COLUMNS, (), "append", unique_id="source.busco.src.b"),),
    )
]


def deliver(lake: Lake, number: int) -> None:
    """Writes a delivery's record, as an empty object: only its key and time are measured."""
    lake.store.create(layout.delivery("src", "b", f"f{number}.csv", 1), b"{}")
    lake.deliveries = number


def values(found: Iterator[Metric]) -> dict[str, tuple[float, ...]]:
    return {metric.name: metric.values for metric in found if metric.values}


def test_ages_and_latencies_of_the_lake(lake: Lake, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    unpublished: dict[str, int] = {}
    monkeypatch.setattr(metrics.pending, "unpublished", lambda *_: unpublished)
    measure = OfLake(lake.store, lambda: PROJECTS, clock)

    def sent() -> dict[str, tuple[float, ...]]:
        clock.wait(300)
        found = values(iter(list(measure())))
        measure.sent()
        return found

    assert sent() == {"UnpublishedAge": (0,)}
    deliver(lake, 1)
    unpublished["bronze.b"] = 1
    assert sent() == {"DeliveryAge": (300,), "UnpublishedAge": (300,)}
    run = lake.pin()
    clock.wait(30)
    deliver(lake, 2)  # too late for the run
    lake.build_all(run)
    clock.wait(10)
    lake.publish(run)
    found = sent()
    assert found["PublishLatency"] == (340,)
    # the second delivery
    assert (found["ReleaseAge"], found["DeliveryAge"], found["UnpublishedAge"]) == ((300,), (310,), (310,))
    # gold.g, gold.h, silver.s with a row each, bronze.b and bronze.c
    assert found["ReleaseRows"] == (5,)
    assert "PublishLatency" not in sent(), "a release is counted once"
    # two releases between two measurements; only the first has a new delivery
    lake.published()
    clock.wait(5)
    unpublished.clear()
    lake.published(code="g")
    not_sent = values(measure())
    assert not_sent["PublishLatency"] == (610,)
    found = sent()
    assert (found["PublishLatency"], found["UnpublishedAge"]) == ((610,), (0,)), "what could not be sent is sent later"


def test_a_rollback_makes_deliveries_wait_from_then_on(lake: Lake, clock: Clock) -> None:
    deliver(lake, 1)
    lake.published()
    first = lake.live().release
    deliver(lake, 2)
    lake.published(code="g")
    clock.wait(86400)
    releases.rollback(lake.store, of_tests.ENVIRONMENT, first, "me", "to look at it")
    clock.wait(60)
    assert values(OfLake(lake.store, lambda: PROJECTS, clock)())["UnpublishedAge"] == (60,)


def test_deliveries_are_listed_every_five_minutes_or_after_a_publish(lake: Lake, clock: Clock) -> None:
    listed: list[str] = []
    original = lake.store.modified
    lake.store.modified = lambda *arguments: listed.append(arguments[0]) or original(*arguments)  # type: ignore
    measure = OfLake(lake.store, lambda: PROJECTS, clock)
    counts = []
    for seconds in (0, 60, 60, 180, 60):
        clock.wait(seconds)
        before = len(listed)
        list(measure())
        counts.append(len(listed) > before)
    assert counts == [True, False, False, True, False]
    lake.published()
    before = len(listed)
    list(measure())
    assert len(listed) > before


def test_what_was_published_before_the_service_started_has_no_latency(lake: Lake, clock: Clock) -> None:
    deliver(lake, 1)
    lake.published()
    assert "PublishLatency" not in values(OfLake(lake.store, lambda: PROJECTS, clock)())


def test_a_part_that_fails_is_named() -> None:
    def broken() -> Iterator[Metric]:
        yield one("DiskUsed", 1)
        raise OSError("no route to host")

    assert measured("the lake", broken) == ([], "the lake can't be measured: no route to host")
    assert measured("the machine", lambda: [one("MemoryUsed", 5)]) == ([one("MemoryUsed", 5)], "")


def test_the_machine_is_measured_and_an_unreachable_server_is_a_problem() -> None:
    found = values(OfMachine("", "")())
    assert found.keys() == {"DiskUsed", "MemoryUsed"}
    assert all(0 < value[0] < 100 for value in found.values())
    _, problem = measured("the machine", OfMachine("127.0.0.1:1", "busco.test"))
    assert "Connection refused" in problem


class CloudWatch:
    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.reachable = True

    def put_metric_data(self, **request: Any) -> None:
        if not self.reachable:
            raise EndpointConnectionError(endpoint_url="https://monitoring")
        self.requests.append(request)


def test_metrics_have_a_unit_one_dimension_and_at_most_a_thousand_fit_into_a_request() -> None:
    cloudwatch = CloudWatch()
    put(cloudwatch, "busco", [Metric("RunDuration", (3.0, 4.0))] * 1001)
    assert [len(request["MetricData"]) for request in cloudwatch.requests] == [1000, 1]
    datum = cloudwatch.requests[0]["MetricData"][0]
    assert cloudwatch.requests[0]["Namespace"] == "Busco"
    assert (datum["MetricName"], datum["Unit"], datum["Values"]) == ("RunDuration", "Seconds", [3.0, 4.0])
    assert datum["Dimensions"] == [{"Name": "Platform", "Value": "busco"}]
    assert datum["Timestamp"].tzinfo is UTC


class Counting:
    """A part that counts what has been sent."""

    def __init__(self) -> None:
        self.number = self.known = 0

    def __call__(self) -> Iterator[Metric]:
        self.number += 1
        yield one("FailedTasks", self.number - self.known)

    def sent(self) -> None:
        self.known = self.number


def test_the_service_goes_on_after_an_outage_of_cloudwatch_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cloudwatch, stop, health, part = CloudWatch(), threading.Event(), Health(tmp_path, "metrics"), Counting()

    def broken() -> Iterator[Metric]:
        raise OSError("no route to host")

    monkeypatch.setattr(metrics, "client", lambda *_, **__: cloudwatch)
    monkeypatch.setattr(metrics, "parts", lambda _: {"the lake": broken, "Airflow": part})
    cloudwatch.reachable = False
    settings = Settings(metrics_platform="busco")
    thread = threading.Thread(target=serve, args=(settings, stop, health), kwargs={"every": 0.05})
    thread.start()
    try:
        waited(lambda: caplog.text.count("the metrics could not be sent to CloudWatch") > 3)
        # a deployment is not to fail because of it
        assert unhealthy(tmp_path, "metrics") == ""
        cloudwatch.reachable = True
        waited(lambda: len(cloudwatch.requests) > 3)
    finally:
        stop.set()
        thread.join(10)
    assert not thread.is_alive()
    data = [datum for request in cloudwatch.requests for datum in request["MetricData"]]
    assert "Heartbeat" in {datum["MetricName"] for datum in data}
    assert sum(datum["Values"][0] for datum in data if datum["MetricName"] == "FailedTasks") == part.known
    assert "the lake can't be measured: no route to host" in caplog.text


def waited(condition: Any) -> None:
    for _ in range(500):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("the condition was not met")


def test_every_metric_is_described_in_the_runbook() -> None:
    text = (Path(__file__).parents[2] / "docs/operating.md").read_text()
    for name, (unit, meaning) in METRICS.items():
        assert f"| `{name}` | {unit.lower()} | {meaning} |" in text, name
