"""What a task does while S3 is unavailable: it waits, never hangs, and decides nothing before reading the records."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from unittest import mock

import pytest
from botocore.exceptions import ClientError, ReadTimeoutError

from busco.lake.records import Ending, Follower, Order, Pin
from busco.orchestration.async_aws import Conflict
from busco.orchestration.follow import Ended
from tests.airflow.lab import Lab, a_model, a_test
from tests.airflow.simulation import Failing, Fault, simulate

S, G, K, TG = "model.p.s", "model.p.g", "model.p.k", "test.p.tg"
NODES = {**a_model("s"), **a_model("g", "s"), **a_model("k", "g"), **a_test("tg", "g")}


async def fixed(lab: Lab) -> None:
    """Has `g` fail, be fixed and be cleared. Nothing downstream has started; the first runner skipped it."""
    lab.bad[G] = "error"
    assert (await lab.follow(S)).state == "success"
    assert (await lab.follow(G)).state == "failed"
    lab.bad.clear()
    assert (await lab.follow(G, attempt=2, along=[TG])).state == "success"


@pytest.mark.parametrize("times", [0, 1, 3])
def test_nothing_is_decided_before_the_records_have_been_read(times: int) -> None:
    async def story() -> None:
        lab = Lab(NODES, ecs=True)
        await fixed(lab)
        await lab.restart()
        lab.s3.fault = Failing("LIST", times=times)
        ended = await asyncio.gather(lab.follow(TG), lab.follow(K))
        assert [one.state for one in ended] == ["success", "success"], [one.text for one in ended]
        assert lab.started == ["shared", "g/2", "shared"]

    simulate(story())


def test_a_task_sees_everything_that_was_recorded_before_it_began() -> None:
    async def story() -> None:
        lab = Lab(NODES, ecs=True, slow={S: 100})
        busy = asyncio.create_task(lab.follow(S))
        while not lab.watch.runners:
            await asyncio.sleep(0.01)
        # recorded by another triggerer, right after a poll of this one
        polls = lab.watch.polls
        while lab.watch.polls == polls:
            await asyncio.sleep(0.01)
        theirs = Order(name="theirs", generation=1, kind="solo", nodes=("model.p.other",))
        lab.run.store.create(lab.run.layout.order("theirs", 1), theirs)
        began = asyncio.get_running_loop().time()
        await lab.watch.enter("k/1")
        assert "theirs" in lab.watch.orders
        assert asyncio.get_running_loop().time() - began < 0.1, "it does not wait for the next scheduled poll"
        busy.cancel()

    simulate(story())


def test_a_task_that_begins_during_a_poll_waits_for_one_that_sees_everything_before_it() -> None:
    async def story() -> None:
        lab = Lab(NODES, ecs=True)
        lab.s3.delay = lambda: 1.0
        first = asyncio.create_task(lab.watch.enter("s/1"))
        while not lab.s3.calls or lab.s3.calls[-1].key != lab.run.layout.results:
            await asyncio.sleep(0.1)
        await asyncio.sleep(1.5)
        # the orders were listed before this one was written; the response to the last listing has not arrived yet
        theirs = Order(name="theirs", generation=1, kind="solo", nodes=("model.p.other",))
        lab.run.store.create(lab.run.layout.order("theirs", 1), theirs)
        await lab.watch.enter("k/1")
        assert first.done()
        assert "theirs" in lab.watch.orders

    simulate(story())


def test_a_try_that_continues_after_a_restart_keeps_the_state_at_its_beginning() -> None:
    async def story() -> None:
        lab = Lab(NODES, ecs=True, slow={K: 5})
        await fixed(lab)
        first = asyncio.create_task(lab.follow(K))
        while "k" not in {result.node.split(".")[-1] for result in lab.run.results() if result.status == "running"}:
            await asyncio.sleep(0.1)
        before = record(lab, "k")
        assert (before.before, before.past) == (2, (1, 2))
        first.cancel()
        # the runner that was building it dies while no triggerer is running
        await lab.stop(lab.run.runners()[-1], "the test")
        await lab.restart()
        lab.slow.clear()
        ended = await lab.follow(K, restarts=0)
        assert ended.state == "failed", "a runner that was lost during this try counts"
        assert "ended without a result" in ended.text
        assert record(lab, "k") == before.model_copy(update={"runner": 3})

    simulate(story())


@pytest.mark.parametrize("joint", [False, True])
def test_a_start_that_failed_before_a_task_was_cleared_does_not_fail_it_after_a_restart(joint: bool) -> None:
    async def story() -> None:
        lab = Lab(NODES, ecs=True, stillborn=True, per_model=joint, joint=frozenset({TG} if joint else ()))
        assert (await lab.follow(TG)).state == "failed"
        lab.stillborn = False
        await lab.restart()
        ended = await lab.follow(TG, attempt=2)
        assert ended.state == "success", ended.text
        assert len(lab.started) == 2

    simulate(story())


def test_a_start_that_fails_during_a_restart_fails_the_task_that_waits_for_it() -> None:
    async def story() -> None:
        lab = Lab(NODES, ecs=True, stillborn=True)
        first = asyncio.create_task(lab.follow(S))
        while not lab.started:
            await asyncio.sleep(0)
        first.cancel()
        await lab.restart()
        ended = await lab.follow(S)
        assert (ended.state, "could not start" in ended.text) == ("failed", True)
        assert lab.started == ["shared"]

    simulate(story())


def test_the_record_of_a_try_that_began_under_an_older_version_is_read() -> None:
    async def story() -> None:
        lab = Lab(NODES, ecs=True)
        await fixed(lab)
        old = {"task": "k", "attempt": 1, "after": 0, "runner": 0, "again": False}
        lab.run.store.create(lab.run.layout.follower("k"), json.dumps(old).encode())
        assert (await lab.follow(K)).state == "success"
        assert record(lab, "k") == Follower(task="k", attempt=1, runner=3, before=2, past=(1, 2), orders={"shared": 1})

    simulate(story())


def record(lab: Lab, task: str) -> Follower:
    found = lab.run.store.read(lab.run.layout.follower(task), Follower)
    assert found is not None
    return found


# -- S3 is unavailable ------------------------------------------------------------------------------------------------


def test_a_task_that_waits_for_a_slot_while_the_records_are_unreadable_gets_its_result_later() -> None:
    async def story() -> None:
        lab = Lab(NODES, ecs=True)
        free = asyncio.Event()
        start = lab.start

        async def waiting(pin: Pin, order: Order, say: Any) -> Any:
            await free.wait()
            return await start(pin, order, say)

        with mock.patch.object(lab, "start", waiting):
            task = asyncio.create_task(lab.follow(S))
            while not lab.watch.polls:
                await asyncio.sleep(0.1)
            lab.s3.fault = Failing("LIST")
            # the poller gives up
            while lab.watch._task is not None and not lab.watch._task.done():
                await asyncio.sleep(1)
            lab.s3.fault = lambda _: None
            free.set()
            assert (await asyncio.wait_for(task, 10)).state == "success"

    simulate(story())


def test_unreadable_records_fail_all_waiting_tasks_and_a_later_try_succeeds() -> None:
    async def story() -> None:
        lab = Lab(NODES, ecs=True)
        lab.s3.fault = Failing("LIST")
        found = await asyncio.gather(*(lab.follow(node) for node in (S, G, K)), return_exceptions=True)
        assert all(isinstance(one, ClientError) for one in found), found
        lab.s3.fault = lambda _: None
        assert (await lab.follow(S)).state == "success"

    simulate(story())


def test_a_task_that_begins_during_an_outage_waits_as_long_as_one_that_began_before_it() -> None:
    async def story() -> None:
        lab = Lab(NODES, ecs=True)
        lab.s3.fault = Failing("LIST")
        first = asyncio.create_task(lab.follow(S))
        await asyncio.sleep(30)
        second = asyncio.create_task(lab.follow(G))
        with pytest.raises(ClientError):
            await first
        await asyncio.sleep(10)
        assert not second.done()
        lab.s3.fault = lambda _: None
        assert (await second).state == "success"

    simulate(story())


@pytest.mark.parametrize("fault", ["unavailable", "silent"])
def test_a_log_that_can_not_be_read_does_not_change_the_state_of_its_task(fault: Fault) -> None:
    async def story() -> None:
        lab = Lab(NODES, ecs=True, bad={G: "error"})
        lab.s3.fault = Failing("GET", ".log", fault=fault)
        ended = await lab.follow(S)
        assert ended.state == "success"
        assert "dbt's log of model.p.s could not be read" in ended.details
        failed = await lab.follow(G)
        assert failed.state == "failed"
        assert "model.p.g is bad" in failed.text

    simulate(story())


def test_a_log_whose_first_read_fails_is_read_again() -> None:
    async def story() -> None:
        lab = Lab(NODES, ecs=True)
        lab.s3.fault = Failing("GET", ".log", times=1, fault="lost")
        assert await lab.follow(S) == Ended("success", "s: ok, 0.0 s", "log of model.p.s")

    simulate(story())


def test_the_reason_for_a_lost_runner_is_reported_even_if_its_output_can_not_be_read() -> None:
    async def story() -> None:
        lab = Lab(NODES, ecs=True, deadly={S})
        lab.s3.fault = Failing("GetLogEvents")
        ended = await lab.follow(S, restarts=0)
        assert ended.state == "failed"
        assert "ended without a result" in ended.text
        assert "output of runner 1 could not be read" in ended.details

    simulate(story())


# -- endings ----------------------------------------------------------------------------------------------------------


def test_an_ending_that_another_triggerer_recorded_counts_even_if_recording_one_here_fails() -> None:
    async def story() -> None:
        lab = Lab(NODES, ecs=True, slow={S: 100, G: 100})
        for name in ("one", "two"):
            await lab.start(lab.watch.pin, Order(name=name, generation=1, kind="solo", nodes=(S,), token=name), print)
        await asyncio.sleep(1)
        await lab.watch.enter("s/1")
        # another triggerer gave up the first runner; the second one is killed, and this triggerer records that
        lab.run.store.create(lab.run.layout.ending(1), Ending(number=1, reason="its host is lost"))
        lab.s3.fault = Failing("PUT", "ended-2", times=1)
        lab._kill(lab.run.runners()[1].pid)
        await lab.watch.changed()
        await lab.watch.changed()
        assert lab.watch.gone(1)
        assert lab.watch.gone(2)

    simulate(story())


@pytest.mark.parametrize("fault", ["conflict", "lost", "unavailable"])
def test_an_ending_counts_once_it_is_written(fault: Fault) -> None:
    async def story() -> None:
        lab = Lab(NODES, ecs=True, deadly={S})
        lab.s3.fault = Failing("PUT", "ended-1", times=2, fault=fault)
        task = asyncio.create_task(lab.follow(S, restarts=1))
        while "shared" not in lab.started[1:]:
            await asyncio.sleep(0.01)
        assert 1 in lab.run.endings(), "processes that cannot query ECS read the ending there"
        task.cancel()

    simulate(story())


def test_a_task_does_not_wait_forever_for_an_ending_that_can_not_be_written() -> None:
    async def story() -> None:
        lab = Lab(NODES, ecs=True, deadly={S})
        lab.s3.fault = Failing("PUT", "ended-1")
        with pytest.raises(ClientError):
            await lab.follow(S)

    simulate(story())


def test_all_runners_that_hang_are_stopped_even_if_stopping_one_fails_at_first() -> None:
    async def story() -> None:
        lab = Lab({**a_model("s"), **a_model("g")}, ecs=True, silence=5, per_model=True, hangs={S, G})
        lab.s3.fault = Failing("StopTask", times=3)
        ended = await asyncio.gather(lab.follow(S), lab.follow(G))
        assert {one.state for one in ended} == {"success"}
        assert sorted(lab.stopped) == [1, 2]
        assert asyncio.get_running_loop().time() < 1015, "they are stopped without a second period of silence"

    simulate(story())


def test_a_runner_that_hangs_and_can_not_be_stopped_does_not_delay_other_tasks() -> None:
    async def story() -> None:
        lab = Lab({**a_model("s"), **a_model("g")}, ecs=True, silence=5, per_model=True, hangs={G})
        lab.s3.fault = Failing("StopTask")
        hanging = asyncio.create_task(lab.follow(G))
        while not any(call.operation == "StopTask" for call in lab.s3.calls):
            await asyncio.sleep(0.1)
        assert (await asyncio.wait_for(lab.follow(S), 2)).state == "success"
        assert (await hanging).state == "success", "its host is considered lost, and another runner takes over"

    simulate(story())


# -- conditional writes -----------------------------------------------------------------------------------------------


def test_a_409_of_a_conditional_write_does_not_mean_that_the_object_exists() -> None:
    async def story() -> None:
        lab = Lab(NODES)
        lab.s3.fault = Failing("PUT", "key", times=1, fault="conflict")
        with pytest.raises(ClientError, match="ConditionalRequestConflict"):
            await lab.objects.put("key", "mine", None)
        await lab.objects.put("key", "mine", None)
        with pytest.raises(Conflict):
            await lab.objects.put("key", "theirs", None)

    simulate(story())


def test_a_write_whose_reply_was_lost_is_recognised_when_it_is_repeated() -> None:
    async def story() -> None:
        lab = Lab(NODES)
        lab.s3.fault = Failing("PUT", "key", times=1, fault="lost")
        with pytest.raises(ReadTimeoutError):
            await lab.objects.put("key", "mine", None)
        await lab.objects.put("key", "mine", None)
        _, etag = await lab.objects.get("key") or (b"", "")
        lab.s3.fault = Failing("PUT", "key", times=1, fault="retried")
        await lab.objects.put("key", "mine, later", etag)
        with pytest.raises(Conflict):
            await lab.objects.put("key", "theirs", etag)
        with pytest.raises(Conflict):
            await lab.objects.put("no such key", "theirs", etag)

    simulate(story())


@pytest.mark.parametrize("fault", ["conflict", "lost", "retried"])
def test_an_order_is_started_by_its_writer_whatever_happens_to_the_reply(fault: Fault) -> None:
    async def story() -> None:
        # only the process that starts a runner can find it: an order that no process claims would need a second order
        lab = Lab(NODES)
        lab.s3.fault = Failing("PUT", "orders/", times=1, fault=fault)
        assert (await lab.follow(S)).state == "success"
        assert lab.started == ["shared"]
        assert list(lab.s3.s3.objects).count(lab.run.layout.order("shared", 2)) == 0

    simulate(story())


def test_only_one_of_two_triggerers_that_write_the_same_order_starts_it() -> None:
    async def story() -> None:
        lab = Lab(NODES, slow={S: 5})
        mine, theirs = lab.watch, lab.another_watch()
        await mine.enter("s/1")
        await theirs.enter("g/1")
        order = Order(name="shared", generation=0, kind="shared")
        await asyncio.gather(*(one.ensure(order, print) for one in (mine, theirs)))
        assert lab.started == ["shared"]

    simulate(story())
