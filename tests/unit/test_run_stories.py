"""What `busco run` reports from the records of runs that succeeded, failed, lost their runner or are waiting."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from busco.errors import BuscoError
from busco.lake import releases, story
from busco.lake.records import RUNNER_NODE, Ending, Heartbeat, Order, Result, Runner
from busco.lake.run_summaries import summaries
from busco.lake.runs import Run
from tests.unit.lake import AUDIT, ENVIRONMENT, Lake

START = datetime(2026, 11, 24, 10, 0, tzinfo=UTC)


class Clocked(Lake):
    """A lake in which each write is one second later than the previous one."""

    def __init__(self) -> None:
        super().__init__()
        self.s3.now = self._next
        self.at = START

    def _next(self) -> datetime:
        self.at += timedelta(seconds=1)
        return self.at

    def order(self, run: Run, name: str = "shared", generation: int = 1, **fields: object) -> None:
        order = Order.model_validate({"name": name, "generation": generation, "kind": "shared", **fields})
        self.store.create(run.layout.order(name, generation), order)

    def register(self, run: Run, number: int, order: str = "shared", generation: int = 1, **fields: object) -> None:
        values = {"launcher": "local", "host": "h", "pid": 7, "started": 0.0, "token": "t", "kind": "shared"}
        named = {"number": number, "order": order, "generation": generation}
        self.store.create(run.layout.runner(number), Runner.model_validate({**values, **named, **fields}))

    def tell(self, run: Run, epoch: int | None = None) -> story.Story:
        return story.read_story(self.store, ENVIRONMENT, run.name, epoch, self.at + timedelta(seconds=30))


@pytest.fixture
def lake() -> Clocked:
    return Clocked()


def texts(report: story.Story) -> list[str]:
    return [event.text for event in report.events]


def test_the_story_of_a_published_run_lists_events_from_pin_to_release_in_order(lake: Clocked) -> None:
    run = lake.pin()
    lake.order(run)
    lake.register(run, 1)
    lake.build_all(run)
    run.put_result(Result(node=RUNNER_NODE, runner=1, status="success"))
    lake.store.create(run.layout.ending(1), Ending(number=1, reason="its process ended"))
    release = lake.publish(run)
    report = lake.tell(run)
    assert [event.kind for event in report.events if event.kind != "published"] == sorted(
        (event.kind for event in report.events if event.kind != "published"),
        key=("pinned", "ordered", "registered", "result", "ended").index,
    )
    assert texts(report)[:3] == [
        "pinned, without a base release: 2 deliveries, 2 source rows; builds everything",
        "the run requested a shared runner for everything without a result",
        "runner 1 started (shared): process 7 on h",
    ]
    assert sum(event.node in AUDIT.tests for event in report.events) == len(AUDIT.tests)
    assert any(text == f"published as {release.release} by me: 3 tables built" for text in texts(report))
    assert report.now == (f"the run is published: {release.release} is live",)
    assert not any(event.failed for event in report.events)


def test_failed_tests_lost_runners_and_runners_that_did_not_start_are_reported(lake: Clocked) -> None:
    run = lake.pin()
    lake.order(run)
    lake.register(run, 1)
    lake.build(run, "silver.s")
    run.put_result(Result(node="test.busco.t.0a1b", runner=1, status="failed", message="Got 3 results"))
    run.put_result(Result(node="model.busco.g", runner=1, status="skipped", message="skipped: t has failed"))
    run.take("gold.g", 1)
    lake.store.create(run.layout.ending(1), Ending(number=1, reason="its process was killed", hint="clear the task"))
    lake.order(run, "g/2", kind="solo", nodes=["model.busco.g"], task="g", attempt=2, rebuild=True, size="large")
    report = lake.tell(run)
    failed = [event.text for event in report.events if event.failed]
    assert failed == [
        "test t: failed (Got 3 results), 0.0 s, runner 1",
        "runner 1 ended: its process was killed (clear the task)",
    ]
    assert texts(report)[-1] == "task g, try 2, requested a runner of size large to build model g again"
    assert report.now == (
        "the runner that task g, try 2, requested 30 s ago has not started: it is waiting for a slot, is being "
        "started, or could not start; the task's log in Airflow says which",
        "failed: test t",
        "1 node skipped because of failures upstream",
        "started but not finished: gold.g",
        "not published, and no runner is working: wait for the next task in Airflow, or clear the one that failed",
    )


def test_a_run_in_progress_reports_the_current_node_and_the_last_heartbeat(lake: Clocked) -> None:
    run = lake.pin()
    lake.order(run)
    lake.register(run, 1)
    run.put_result(Result(node=RUNNER_NODE, runner=1, status="running"))
    run.put_result(Result(node="model.busco.g", runner=1, status="running"))
    beat = Heartbeat(number=1, beat=1, written_at=lake.at)
    lake.store.put(run.layout.heartbeat(1), beat)
    assert lake.tell(run).now == ("runner 1 is working on model g; its last heartbeat was 30 s ago",)


def test_a_fenced_result_is_reported_but_is_not_a_failure(lake: Clocked) -> None:
    run = lake.pin()
    run.put_result(Result(node="model.busco.g", runner=1, status="error", fenced=True))
    (event,) = (event for event in lake.tell(run).events if event.kind == "result")
    assert event.text.endswith("ignored because another runner had taken over the node")
    assert not event.failed


def test_a_run_that_is_on_hold_rolled_back_or_live_again_is_reported_as_such(lake: Clocked) -> None:
    first, second = lake.published(), lake.published(code="g")
    held = lake.pin()
    lake.build_all(held)
    releases.rollback(lake.store, ENVIRONMENT, lake.live().previous or "", "ana", "wrong sums")
    with pytest.raises(releases.OnHold):
        lake.publish(held)
    since = f"{_hold(lake):%Y-%m-%d %H:%M} UTC"
    assert lake.tell(held).now == (f"not published: ana put publishing on hold at {since}: wrong sums",)
    assert lake.tell(first).now == (f"the run was published, and rollback {lake.live().release} made it live again",)
    assert lake.tell(second).now[0].endswith(f"which was rolled back by {lake.live().release}")
    status = {summary.pin.run: summary.status for summary in summaries(lake.store, ENVIRONMENT)}
    assert status[held.name] == "not published: on hold"
    assert status[first.name].startswith("published as r")


def _hold(lake: Lake) -> datetime:
    live = releases.read_live(lake.store, ENVIRONMENT)
    assert live is not None
    assert live.current.hold is not None
    return live.current.hold.when


def test_a_replaced_epoch_is_reported_and_for_a_missing_one_the_existing_ones_are_listed(lake: Clocked) -> None:
    lake.pin(run="r")
    newer = lake.pin(run="r", epoch=2)
    assert lake.tell(newer, 1).now == ("epoch 2 has replaced this epoch, because the pin task ran again",)
    assert lake.tell(newer).pin.epoch == 2
    with pytest.raises(BuscoError, match=r"epoch 3 of run r does not exist(?s:.*)epochs are: 1, 2"):
        lake.tell(newer, 3)


def test_runs_are_listed_in_reverse_order_of_pinning(lake: Clocked) -> None:
    waiting = lake.pin()
    lake.order(waiting)
    working = lake.pin()
    lake.register(working, 1)
    lake.register(working, 2)
    lake.register(working, 3)
    lake.store.create(working.layout.ending(1), Ending(number=1, reason="it ended"))
    # no task follows a build that was started in a shell, so no ending is recorded for its runner
    working.put_result(Result(node=RUNNER_NODE, runner=3, status="success"))
    found = summaries(lake.store, ENVIRONMENT)
    assert [(summary.pin.run, summary.status) for summary in found] == [
        (working.name, "not published; 1 runner working, or lost"),
        (waiting.name, "not published; no runner yet"),
    ]


def test_consecutive_successes_share_one_line_and_all_other_results_have_their_own(lake: Clocked) -> None:
    run = lake.pin()
    for number in range(5):
        run.put_result(Result(node=f"model.busco.m{number}", runner=1, status="success"))
    run.put_result(Result(node="test.busco.t.0a1b", runner=1, status="warn", message="Got 1 result"))
    run.put_result(Result(node="model.busco.last", runner=1, status="success"))
    events = [event.text for event in story.shortened(lake.tell(run).events) if event.kind == "result"]
    assert events == [
        "since 10:00:06, these have succeeded: 5 models",
        "test t: warn (Got 1 result), 0.0 s, runner 1",
        "model last: success, 0.0 s, runner 1",
    ]
