"""A triggerer has one watch per epoch that it follows; the triggers of that epoch share it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any
from unittest import mock

import pytest

from busco.lake.layout import EnvironmentLayout
from busco.lake.records import Pin, utc_now
from busco.lake.runs import save_pin
from busco.orchestration import triggers, watches
from busco.orchestration.triggers import FollowTrigger
from tests.airflow.lab import Lab, a_model, a_test
from tests.airflow.simulation import Failing, simulate

S = "model.p.s"
NODES = {**a_model("s"), **a_model("g", "s"), **a_model("k", "g"), **a_test("tg", "g")}


def watching(story: Any) -> None:
    """Runs a story with a lab; the watches of this process read the lab's lake."""

    async def play() -> None:
        lab = Lab(NODES)
        settings = lab.watch.settings
        for run in ("r", "other", "third"):
            pin = Pin(
                run=run, epoch=1, environment="prod", base=None, bronze={}, manifest_hash="h", created_at=utc_now()
            )
            save_pin(lab.run.store, EnvironmentLayout("prod"), pin)

        async def objects(_: Any) -> Any:
            return lab.objects

        with (
            mock.patch.object(watches, "objects_of", objects),
            mock.patch.object(watches, "launcher", return_value=lab),
            mock.patch.dict(watches._watches, clear=True),
        ):
            await story(lab, settings)

    simulate(play())


def test_an_epoch_has_one_watch_however_its_followers_come_and_go() -> None:
    async def story(lab: Lab, settings: Any) -> None:
        delays = iter([0.0, 0.01, 0.02, 0.003] * 1000)
        lab.s3.delay = lambda: next(delays)
        calls: list[Coroutine[Any, Any, Any]] = []
        for number in range(40):
            calls.append(watches.watch(settings, ("r", "other", "third")[number % 3], f"task/{number}"))
        found = await asyncio.gather(*calls)
        assert len({id(watch) for watch in found}) == 3
        for number, watch in enumerate(found):
            watch.leave(f"task/{number}")
        # a watch without followers is kept until another run is followed
        assert await watches.watch(settings, "r", "later") in found

    watching(story)


def test_a_watch_is_kept_for_a_follower_that_has_found_it_but_has_not_started() -> None:
    async def story(lab: Lab, settings: Any) -> None:
        mine = await watches.watch(settings, "r", "s/1")
        await watches.watch(settings, "other", "s/1")
        assert await watches.watch(settings, "r", "g/1") is mine
        mine.leave("s/1")
        mine.leave("g/1")
        await watches.watch(settings, "third", "s/1")
        assert await watches.watch(settings, "r", "k/1") is not mine, (
            "the records of a run without followers are not kept forever"
        )

    watching(story)


def test_a_follower_does_not_get_a_watch_that_is_dropped_while_the_follower_looks_it_up() -> None:
    async def story(lab: Lab, settings: Any) -> None:
        for ticks in range(-15, 15):
            known = await watches.watch(settings, "r", "before")
            known.leave("before")
            for key in [key for key, watch in watches._watches.items() if watch is not known]:
                del watches._watches[key]

            async def later(run: str, turns: int) -> Any:
                for _ in range(turns):
                    await asyncio.sleep(0)
                return await watches.watch(settings, run, "mine")

            # the other run's watch is created, and this run's dropped, in each possible iteration of the event loop
            mine, other = await asyncio.gather(later("r", max(0, ticks)), later("other", max(0, -ticks)))
            theirs = await watches.watch(settings, "r", "theirs")
            assert mine is theirs, f"two pollers if the other run comes {ticks} iterations earlier"
            other.leave("mine")
            mine.leave("mine")
            mine.leave("theirs")

    watching(story)


def test_a_run_is_found_although_reading_its_pin_fails_at_first() -> None:
    async def story(lab: Lab, settings: Any) -> None:
        lab.s3.fault = Failing("LIST", times=2)
        assert (await watches.watch(settings, "r", "s/1")).pin.run == "r"
        lab.s3.fault = Failing("GET", "pin", times=2)
        assert (await watches.watch(settings, "other", "s/1")).pin.run == "other"
        with pytest.raises(LookupError, match="never pinned"):
            await watches.watch(settings, "nobody", "s/1")

    watching(story)


# -- the trigger ------------------------------------------------------------------------------------------------------


def events_of(trigger: FollowTrigger, settings: Any) -> Coroutine[Any, Any, list[Any]]:
    """Returns the events that a trigger of the lab's run yields."""

    async def yielded() -> list[Any]:
        with (
            mock.patch.object(triggers, "get_settings", return_value=settings),
            mock.patch.object(triggers, "run_key", return_value="r"),
            mock.patch.object(trigger, "_stale", return_value=""),
            mock.patch.object(triggers.asyncio, "to_thread", at_once),
        ):
            return [event.payload async for event in trigger.run()]

    async def at_once(call: Any, *arguments: Any) -> Any:
        return call(*arguments)

    return yielded()


def a_trigger() -> FollowTrigger:
    return FollowTrigger("s", [S], [], "s", dag_id="dag", run_id="run", attempt=1, end_task=False)


def test_a_deferred_task_ends_with_its_result_although_each_kind_of_call_fails_at_first() -> None:
    async def story(lab: Lab, settings: Any) -> None:
        failing = [Failing(operation, times=2) for operation in ("LIST", "GET", "PUT", "DescribeTasks", "RunTask")]
        lab.s3.fault = lambda call: next((fault for failure in failing if (fault := failure(call))), None)
        (event,) = await events_of(a_trigger(), settings)
        assert event == {"state": "success", "text": "s: ok, 0.0 s", "details": "log of model.p.s"}
        assert not any(failure.times for failure in failing)
        assert (await watches.watch(settings, "r", "g/1")).followers == {"g/1": 0}, "the trigger no longer follows"

    watching(story)


def test_a_deferred_task_whose_pin_cannot_be_read_says_so_and_what_to_do() -> None:
    async def story(lab: Lab, settings: Any) -> None:
        lab.s3.fault = Failing("LIST")
        (event,) = await events_of(a_trigger(), settings)
        assert event["state"] == "failed"
        assert "the pin of run r could not be read: ClientError" in event["text"]
        assert "clear this task" in event["text"]

    watching(story)


def test_a_deferred_task_whose_records_cannot_be_read_says_so_and_what_to_do() -> None:
    async def story(lab: Lab, settings: Any) -> None:
        lab.s3.fault = Failing("LIST", lab.run.layout.results)
        (event,) = await events_of(a_trigger(), settings)
        assert event["state"] == "failed"
        assert "calls to AWS kept failing: ClientError" in event["text"]
        assert "clear this task when S3 and ECS are available again" in event["text"]

    watching(story)
