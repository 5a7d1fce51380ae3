"""What many tasks of one triggerer ask at once is asked once, and never answered from before the question."""

from __future__ import annotations

import asyncio

from busco.orchestration.async_aws import shared


def test_a_thousand_tasks_that_ask_the_same_put_the_question_at_most_twice_at_a_time() -> None:
    async def story() -> None:
        put = 0

        async def ask() -> int:
            nonlocal put
            put += 1
            await asyncio.sleep(0)
            return put

        tasks = []
        for _ in range(1000):
            tasks.append(asyncio.create_task(shared("run", ask)))
            if len(tasks) % 100 == 0:
                await asyncio.sleep(0)
        await asyncio.gather(*tasks)
        assert put < 30

    asyncio.run(story())


def test_who_asks_while_a_question_is_put_gets_an_answer_of_afterwards() -> None:
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


def test_a_question_that_fails_fails_for_all_who_asked_it_and_is_put_anew() -> None:
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
