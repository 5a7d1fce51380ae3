"""Concurrent identical requests of a triggerer's tasks are coalesced, and no response is older than its request."""

from __future__ import annotations

import asyncio

from busco.orchestration.async_aws import shared


def test_a_thousand_tasks_with_the_same_request_share_a_few_calls() -> None:
    async def story() -> None:
        calls = 0

        async def ask() -> int:
            nonlocal calls
            calls += 1
            await asyncio.sleep(0)
            return calls

        tasks = []
        for _ in range(1000):
            tasks.append(asyncio.create_task(shared("run", ask)))
            if len(tasks) % 100 == 0:
                await asyncio.sleep(0)
        await asyncio.gather(*tasks)
        assert calls < 30

    asyncio.run(story())


def test_a_request_made_during_a_call_gets_the_response_of_a_later_call() -> None:
    async def story() -> None:
        state, begun, go_on = "old", asyncio.Event(), asyncio.Event()

        async def ask() -> str:
            seen = state
            begun.set()
            await go_on.wait()
            return seen

        first = asyncio.create_task(shared("run", ask))
        await begun.wait()
        state = "new"
        second = asyncio.create_task(shared("run", ask))
        go_on.set()
        assert await asyncio.gather(first, second) == ["old", "new"]

    asyncio.run(story())


def test_a_call_that_fails_raises_for_all_its_callers_and_the_next_request_repeats_it() -> None:
    async def story() -> None:
        errors = [OSError("away")]

        async def ask() -> str:
            if errors:
                raise errors.pop()
            return "well"

        tasks = [asyncio.create_task(shared("run", ask)) for _ in range(2)]
        assert [str(one) for one in await asyncio.gather(*tasks, return_exceptions=True)] == ["away", "away"]
        assert await shared("run", ask) == "well"

    asyncio.run(story())
