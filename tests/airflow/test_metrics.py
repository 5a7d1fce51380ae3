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

from busco.lake import compose, layout
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
    assert values(measure()) == {"UnpublishedAge": (0,)}
    deliver(lake, 1)
    unpublished["bronze.b"] = 1
    clock.wait(20)
    assert values(measure()) == {"DeliveryAge": (20,), "UnpublishedAge": (20,)}
    run = lake.pin()
    clock.wait(30)
    deliver(lake, 2)  # too late for the run
    lake.build_all(run)
    clock.wait(10)
    lake.publish(run)
    clock.wait(60)
    found = values(measure())
    assert found["PublishLatency"] == (60,)
    # the second delivery
    assert (found["ReleaseAge"], found["DeliveryAge"], found["UnpublishedAge"]) == ((60,), (70,), (70,))
    # gold.g, gold.h, silver.s with a row each, bronze.b and bronze.c
    assert found["ReleaseRows"] == (5,)
    assert "PublishLatency" not in values(measure()), "a release is counted once"
    # two releases between two looks; only the first has a new delivery
    lake.published()
    clock.wait(5)
    unpublished.clear()
    lake.published(code="g")
    found = values(measure())
    assert (found["PublishLatency"], found["UnpublishedAge"]) == ((70,), (0,))


def test_what_was_published_before_the_service_started_has_no_latency(lake: Lake, clock: Clock) -> None:
    deliver(lake, 1)
    lake.published()
    assert "PublishLatency" not in values(OfLake(lake.store, lambda: PROJECTS, clock)())


def test_a_part_that_fails_leaves_the_others_and_is_named() -> None:
    def broken() -> Iterator[Metric]:
        yield one("DiskUsed", 1)
        raise OSError("no route to host")

    found, problems = measured({"the lake": broken, "the machine": lambda: [one("MemoryUsed", 5)]})
    assert [metric.name for metric in found] == ["Heartbeat", "MemoryUsed"]
    assert problems == ["the lake can't be measured: no route to host"]


def test_the_machine_is_measured_and_an_unreachable_server_is_a_problem() -> None:
    found = values(OfMachine("", "")())
    assert found.keys() == {"DiskUsed", "MemoryUsed"}
    assert all(0 < value[0] < 100 for value in found.values())
    _, problems = measured({"the machine": OfMachine("127.0.0.1:1", "busco.test")})
    assert "Connection refused" in problems[0]


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


def test_the_service_goes_on_after_an_outage_of_cloudwatch_and_ends_when_it_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cloudwatch, stop, health = CloudWatch(), threading.Event(), Health(tmp_path, "metrics")
    monkeypatch.setattr(metrics, "client", lambda *_: cloudwatch)
    monkeypatch.setattr(metrics, "parts", lambda _: {"one": lambda: [one("MemoryUsed", 5)]})
    cloudwatch.reachable = False
    settings = Settings(metrics_platform="busco")
    thread = threading.Thread(target=serve, args=(settings, stop, health), kwargs={"every": 0.05})
    thread.start()
    try:
        waited(lambda: "the metrics can't be put into CloudWatch" in caplog.text)
        # a deployment is not to fail because of it
        assert unhealthy(tmp_path, "metrics") == ""
        cloudwatch.reachable = True
        waited(lambda: len(cloudwatch.requests) > 1)
    finally:
        stop.set()
        thread.join(10)
    assert not thread.is_alive()
    assert {datum["MetricName"] for datum in cloudwatch.requests[0]["MetricData"]} == {"Heartbeat", "MemoryUsed"}


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
