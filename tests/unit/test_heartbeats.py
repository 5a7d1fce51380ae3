"""A runner's heartbeats."""

from __future__ import annotations

import threading
from unittest import mock

import pytest
from botocore.exceptions import EndpointConnectionError
from pydantic import ValidationError

from busco.lake.layout import RunLayout
from busco.lake.objects import ObjectStore
from busco.lake.records import Heartbeat
from busco.settings import Settings
from busco.warehouse.heartbeats import beating
from tests.unit.memory_s3 import MemoryS3

LAYOUT = RunLayout("_lake/env/prod/runs/r/1/")


def beats(store: ObjectStore, number: int = 1) -> int:
    record = store.read(LAYOUT.heartbeat(number), Heartbeat)
    return record.beat if record else 0


def test_a_heartbeat_is_written_immediately_and_changes_until_the_end() -> None:
    store = ObjectStore(MemoryS3(), "lake")
    wrote = threading.Event()
    put = store.put

    def counted(*arguments: object) -> None:
        put(*arguments)  # type: ignore[arg-type]
        if beats(store) >= 4:
            wrote.set()

    with mock.patch.object(store, "put", counted), beating(store, LAYOUT, 1, every=0.005):
        assert beats(store) >= 1
        assert wrote.wait(10)
    assert not [thread for thread in threading.enumerate() if thread.name == "heartbeat" and _is_still_alive(thread)]


def test_an_s3_outage_ends_neither_the_runner_nor_its_heartbeat() -> None:
    store = ObjectStore(MemoryS3(), "lake")
    back = threading.Event()
    put, failures = store.put, [0]

    def failing_at_first(*arguments: object) -> None:
        if failures[0] < 3:
            failures[0] += 1
            raise EndpointConnectionError(endpoint_url="http://away")
        put(*arguments)  # type: ignore[arg-type]
        back.set()

    with mock.patch.object(store, "put", failing_at_first), beating(store, LAYOUT, 1, every=0.005):
        assert back.wait(10)
    assert failures == [3]
    assert beats(store) >= 4


@pytest.mark.parametrize(
    ("seconds", "is_valid"), [("0", True), ("15", True), ("300", True), ("5", False), ("-1", False)]
)
def test_a_runner_silence_shorter_than_a_heartbeat_interval_is_refused(seconds: str, is_valid: bool) -> None:
    with mock.patch.dict("os.environ", {"BUSCO_RUNNER_SILENCE": seconds}):
        if is_valid:
            assert Settings().runner_silence == float(seconds)
        else:
            with pytest.raises(ValidationError, match="runner_silence"):
                Settings()


def _is_still_alive(thread: threading.Thread) -> bool:
    thread.join(5)
    return thread.is_alive()
