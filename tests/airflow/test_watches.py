"""One watch for each epoch of a run that is followed here, and the trigger that is its follower."""

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
    """Runs a story with a lab whose lake the watches of this process read."""

    async def told() -> None:
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

    simulate(told())


def test_an_epoch_has_one_watch_however_its_followers_come_and_go() -> None:
    async def story(lab: Lab, settings: Any) -> None:
        delays = iter([0.0, 0.01, 0.02, 0.003] * 1000)
        lab.s3.delay = lambda: next(delays)
        wanted: list[Coroutine[Any, Any, Any]] = []
        for number in range(40):
            wanted.append(watches.watch(settings, ("r", "other", "third")[number % 3], f"task/{number}"))
        found = await asyncio.gather(*wanted)
        assert len({id(one) for one in found}) == 3
        for number, one in enumerate(found):
            one.leave(f"task/{number}")
        # one that nobody follows any more is kept until another run comes
        assert await watches.watch(settings, "r", "later") in found

    watching(story)


def test_a_watch_is_kept_for_who_has_found_it_and_has_not_begun() -> None:
    async def story(lab: Lab, settings: Any) -> None:
        mine = await watches.watch(settings, "r", "s/1")
        await watches.watch(settings, "other", "s/1")
        assert await watches.watch(settings, "r", "g/1") is mine
        mine.leave("s/1")
        mine.leave("g/1")
        await watches.watch(settings, "third", "s/1")
        assert await watches.watch(settings, "r", "k/1") is not mine, "its records are not kept for ever"

    watching(story)


def test_a_watch_that_is_dropped_while_a_follower_is_on_its_way_to_it_is_not_given_to_it() -> None:
    async def story(lab: Lab, settings: Any) -> None:
        for ticks in range(-15, 15):
            known = await watches.watch(settings, "r", "before")
            known.leave("before")
            for key in [key for key, one in watches._watches.items() if one is not known]:
                del watches._watches[key]

            async def later(run: str, turns: int) -> Any:
                for _ in range(turns):
                    await asyncio.sleep(0)
                return await watches.watch(settings, run, "mine")

            # the other run's watch is made, and this one's is dropped, in every turn of the loop
            mine, other = await asyncio.gather(later("r", max(0, ticks)), later("other", max(0, -ticks)))
            theirs = await watches.watch(settings, "r", "theirs")
            assert mine is theirs, f"two pollers where the other run comes {ticks} turns earlier"
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
    """What a trigger of the lab's run yields."""

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
        lab.s3.fault = lambda call: next((fault for one in failing if (fault := one(call))), None)
        (event,) = await events_of(a_trigger(), settings)
        assert event == {"state": "success", "text": "s: ok, 0.0 s", "details": "log of model.p.s"}
        assert not any(one.times for one in failing)
        assert (await watches.watch(settings, "r", "g/1")).followers == {"g/1": 0}, "it follows no more"

    watching(story)


def test_a_deferred_task_whose_run_s_pin_can_not_be_read_says_so_and_what_to_do() -> None:
    async def story(lab: Lab, settings: Any) -> None:
        lab.s3.fault = Failing("LIST")
        (event,) = await events_of(a_trigger(), settings)
        assert event["state"] == "failed"
        assert "the pin of run r could not be read: ClientError" in event["text"]
        assert "clear this task" in event["text"]

    watching(story)


def test_a_deferred_task_whose_run_s_records_can_not_be_read_says_so_and_what_to_do() -> None:
    async def story(lab: Lab, settings: Any) -> None:
        lab.s3.fault = Failing("LIST", lab.run.layout.results)
        (event,) = await events_of(a_trigger(), settings)
        assert event["state"] == "failed"
        assert "calls to AWS kept failing: ClientError" in event["text"]
        assert "clear this task when S3 and ECS are available again" in event["text"]

    watching(story)
