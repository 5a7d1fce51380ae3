"""Every ECS task has a slot, and there are never more tasks than slots, despite throttling, lost replies and kills."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from busco.orchestration.launch import CannotStart
from busco.orchestration.places import STALE, Unreachable
from busco.orchestration.stops import Stop
from tests.unit.places_world import LAG, Fault, Killed, Memory, Triggerer, World, in_one_thread, maintenance
from tests.unit.virtual_time import simulate

_HOURS = 12 * 3600.0


@pytest.fixture(autouse=True, scope="module")
def _in_one_thread() -> Iterator[None]:
    with in_one_thread():
        yield


def run(story: Coroutine[Any, Any, None]) -> None:
    simulate(story)


def test_an_order_that_waits_for_capacity_keeps_its_slot_however_long_that_takes() -> None:
    async def story() -> None:
        world = World(limit=1)
        world.faults["first"] = ["capacity"] * 20
        first, second = Triggerer(world), Triggerer(world)
        begun = asyncio.create_task(first.start("first"))
        await asyncio.sleep(1)
        other = asyncio.create_task(second.start("second"))
        await begun
        assert not other.done()
        assert world.clock() > 1000 + 5 * STALE
        await other
        assert world.most == 1

    run(story())


def test_an_order_keeps_its_slot_however_slowly_ecs_responds() -> None:
    async def story() -> None:
        world = World(limit=1)
        first = Triggerer(world, latency=[2 * STALE])
        begun = asyncio.create_task(first.start("first"))
        await asyncio.sleep(1)
        other = asyncio.create_task(Triggerer(world).start("second"))
        await asyncio.gather(begun, other)
        assert world.most == 1
        assert first.said == []

    run(story())


def test_an_owner_that_lost_its_slot_between_two_tries_gets_another_before_calling_ecs_again() -> None:
    async def story() -> None:
        world = World(limit=1, duration=1000)
        world.faults["slow"] = ["capacity"]
        slow = Triggerer(world)
        begun = asyncio.create_task(slow.start("slow"))
        await asyncio.sleep(0.5)
        slow.stall(10 * STALE)
        other = await Triggerer(world).start("other")
        arn = await begun
        assert [*world.tasks] == [other, arn]
        assert world.most == 1

    run(story())


def test_the_slot_of_a_triggerer_that_died_before_calling_ecs_is_free_after_a_minute() -> None:
    async def story() -> None:
        world = World(limit=1)
        world.faults["dead"] = ["capacity"] * 100
        dead = Triggerer(world)
        begun = asyncio.create_task(dead.start("dead"))
        await asyncio.sleep(10)
        dead.kill()
        arn = await asyncio.wait_for(Triggerer(world).start("next"), 2 * STALE)
        assert [task.arn for task in world.living()] == [arn]
        begun.cancel()
        await asyncio.gather(begun, return_exceptions=True)

    run(story())


def test_a_task_keeps_its_slot_if_its_triggerer_died_before_reading_the_reply() -> None:
    async def story() -> None:
        world = World(limit=1, duration=300)
        world.faults["dead"] = ["lost"]
        dead = Triggerer(world)
        begun = asyncio.create_task(dead.start("dead"))
        while not world.tasks:
            await asyncio.sleep(0.01)
        dead.kill()
        await Triggerer(world).start("next")
        assert world.most == 1
        assert world.clock() >= 1000 + 300
        begun.cancel()
        await asyncio.gather(begun, return_exceptions=True)

    run(story())


def test_an_owner_that_stalled_and_lost_its_slot_stops_its_task_and_requests_a_slot_again() -> None:
    async def story() -> None:
        world = World(limit=1, duration=1000)
        slow = Triggerer(world, latency=[5.0])
        begun = asyncio.create_task(slow.start("slow"))
        # the RunTask request is in flight and has not reached ECS yet
        await asyncio.sleep(7)
        slow.stall(10 * STALE)
        other = await Triggerer(world).start("other")
        arn = await begun
        assert any("slot was taken away" in line for line in slow.said)
        first, again = (task.arn for task in world.tasks.values() if task.token == "slow")
        assert (world.tasks[first].stops, world.tasks[other].stops, arn) == (True, False, again)
        assert world.tasks[again].started_at >= world.tasks[other].ends_at
        assert world.without_a_row() == []

    run(story())


def test_a_task_that_is_being_stopped_keeps_its_slot_until_it_has_ended() -> None:
    async def story() -> None:
        world = World(limit=1, duration=10_000, ending=100)
        first = Triggerer(world)
        await first.stop_task(await first.start("first"), "no longer needed")
        stopped_at = world.clock()
        await maintenance(world)
        assert "first" in world.table.rows
        await first.start("second")
        assert world.clock() - stopped_at >= 100
        assert world.most == 1

    run(story())


def test_two_triggerers_that_start_the_same_order_start_one_task() -> None:
    async def story() -> None:
        world = World(limit=1)
        world.faults["one"] = ["lost", "capacity"]
        arns = await asyncio.gather(*(Triggerer(world, latency=[delay]).start("one") for delay in (0.05, 0.3, 2.0)))
        assert len({*arns}) == len(world.tasks) == 1

    run(story())


@pytest.mark.parametrize(("faults", "is_free"), [([], True), (["capacity"], True), (["unheard"], False)])
def test_a_failed_start_frees_its_slot_immediately_only_if_no_task_was_started(
    faults: list[Fault], is_free: bool
) -> None:
    async def story() -> None:
        world = World(limit=1)
        world.faults["one"] = faults
        one = Triggerer(world)

        async def refused(client_token: str) -> str:
            if faults:
                return await one._run("one", client_token)
            raise Unreachable(Stop("role", "ECS may not use the role", "deploy it"))

        with pytest.raises(CannotStart, match="may not use the role"):
            await one.places.start("one", "one", refused, one.said.append)
        assert ("one" not in world.table.rows) == is_free
        await maintenance(world)
        assert world.table.rows == {}

    run(story())


def test_a_cancelled_start_frees_its_slot_if_ecs_has_started_nothing() -> None:
    async def story() -> None:
        world = World(limit=1)
        world.faults["retries"] = ["capacity"] * 100
        one = Triggerer(world)
        retries = asyncio.create_task(one.start("retries"))
        await asyncio.sleep(100)
        waits = asyncio.create_task(one.start("waits"))
        await asyncio.sleep(2)
        assert {*world.table.rows} == {"retries", "waits"}
        for started in (retries, waits):
            started.cancel()
        await asyncio.gather(retries, waits, return_exceptions=True)
        assert world.table.rows == {}

    run(story())


@pytest.mark.parametrize("ends", ["cancelled", "refused"])
def test_a_slot_is_not_freed_while_another_triggerer_may_start_the_same_order_in_it(ends: str) -> None:
    async def story() -> None:
        world = World(limit=1, duration=600)
        world.faults["same"] = ["capacity"] * 6
        slow, quick = Triggerer(world, latency=[2.0]), Triggerer(world)
        is_refused = False

        async def refused(client_token: str) -> str:
            if is_refused:
                raise Unreachable(Stop("role", "ECS may not use the role", "deploy it"))
            return await quick._run("same", client_token)

        ended = asyncio.create_task(quick.places.start("same", "same", refused, quick.said.append))
        await asyncio.sleep(0.01)
        goes_on = asyncio.create_task(slow.start("same"))
        other = asyncio.create_task(Triggerer(world).start("other"))
        while not world.tasks:
            await asyncio.sleep(0.01)
        # ECS has started the task; its reply to the slow triggerer is in flight, and the quick one is between two tries
        is_refused = True
        if ends == "cancelled":
            ended.cancel()
        await asyncio.gather(ended, return_exceptions=True)
        arn = await goes_on
        assert not any("slot was taken away" in line for line in slow.said)
        assert not other.done()
        await other
        assert world.most == 1
        assert world.tasks[arn].stops is False

    run(story())


def test_an_order_keeps_its_position_in_the_queue_when_one_of_its_two_waiters_is_cancelled() -> None:
    async def story() -> None:
        world = World(limit=1, duration=30)
        await Triggerer(world).start("first")
        starts = [asyncio.create_task(Triggerer(world).start("same")) for _ in range(2)]
        await asyncio.sleep(0.5)
        last = asyncio.create_task(Triggerer(world).start("last"))
        await asyncio.sleep(5)
        starts[0].cancel()
        await asyncio.gather(starts[1], last)
        assert [task.token for task in world.tasks.values()] == ["first", "same", "last"]

    run(story())


def test_a_second_start_does_not_free_the_slot_if_the_reply_to_the_first_was_lost() -> None:
    async def story() -> None:
        world = World(limit=1, duration=600)
        world.faults["one"] = ["lost", "capacity", "capacity"]
        one = Triggerer(world)
        # the database fails after the reply was lost, and the caller tries again
        unavailable = OSError("the database is unavailable")
        with (
            mock.patch.object(Memory, "keep", side_effect=[True, unavailable]),
            pytest.raises(OSError, match="is unavailable"),
        ):
            await one.start("one")
        again = asyncio.create_task(one.start("one"))
        await asyncio.sleep(0.5)
        again.cancel()
        await Triggerer(world).start("other")
        assert world.most == 1

    run(story())


@pytest.mark.parametrize("later", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("fault", ["none", "lost"])
def test_a_discarded_order_leaves_no_task_whenever_it_was_cancelled(fault: Fault, later: float) -> None:
    async def story() -> None:
        world = World(limit=5, duration=3600)
        world.faults["one"] = [fault]
        triggerer = Triggerer(world, latency=[0.4])
        begun = asyncio.create_task(triggerer.start("one"))
        # ECS has started the task, and its reply is in flight; ListTasks does not show the task yet
        while not world.tasks:
            await asyncio.sleep(0.1)
        begun.cancel()
        await asyncio.wait([begun])
        await asyncio.sleep(later)
        await triggerer.places.discard("one", "its task was cleared")
        assert all(task.stops for task in world.tasks.values())
        await asyncio.sleep(world.ending)
        await maintenance(world)
        assert world.table.rows == {}

    run(story())


def test_an_order_that_another_triggerer_just_started_can_be_discarded_before_ecs_lists_its_task() -> None:
    async def story() -> None:
        world = World(limit=5, duration=3600)
        arn = await Triggerer(world).start("one")
        await Triggerer(world).places.discard("one", "its task was cleared")
        assert world.tasks[arn].stops
        assert world.clock() - world.tasks[arn].started_at < LAG

    run(story())


def test_an_order_that_is_discarded_before_its_start_reaches_ecs_leaves_no_task() -> None:
    async def story() -> None:
        world = World(limit=5, duration=3600)
        triggerer = Triggerer(world, latency=[0.05, 100.0] + [0.05] * 10)
        begun = asyncio.create_task(triggerer.start("one"))
        await asyncio.sleep(10)
        begun.cancel()
        await asyncio.wait([begun])
        await triggerer.places.discard("one", "its task was cleared")
        assert [task.stops for task in world.tasks.values()] == [True]

    run(story())


def test_a_triggerer_that_shuts_down_during_a_start_leaves_the_task_for_the_next_one_to_find() -> None:
    async def story() -> None:
        world = World(limit=1, duration=600)
        first = Triggerer(world, latency=[1.5])
        begun = asyncio.create_task(first.start("one"))
        while not world.tasks:
            await asyncio.sleep(0.1)
        begun.cancel()
        await asyncio.wait([begun])
        arn = await Triggerer(world).start("one")
        await asyncio.sleep(5 * STALE)
        assert [(task.arn, task.stops) for task in world.tasks.values()] == [(arn, False)]
        assert world.table.rows["one"].arn == arn

    run(story())


def test_a_cancelled_start_keeps_its_slot_until_ecs_responds() -> None:
    async def story() -> None:
        world = World(limit=1, duration=1000)
        begun = asyncio.create_task(Triggerer(world, latency=[3 * STALE]).start("slow"))
        # the RunTask request is in flight and has not reached ECS yet
        await asyncio.sleep(5 * STALE)
        begun.cancel()
        await asyncio.wait([begun])
        await Triggerer(world).start("other")
        assert [task.token for task in world.tasks.values()] == ["slow", "other"]
        assert world.most == 1

    run(story())


def test_a_cancelled_start_that_stalled_and_lost_its_slot_leaves_no_task() -> None:
    async def story() -> None:
        world = World(limit=1, duration=1000)
        slow = Triggerer(world, latency=[5.0])
        begun = asyncio.create_task(slow.start("slow"))
        # the RunTask request is in flight and has not reached ECS yet
        await asyncio.sleep(7)
        begun.cancel()
        await asyncio.wait([begun])
        slow.stall(10 * STALE)
        other = await Triggerer(world).start("other")
        await asyncio.sleep(11 * STALE)
        assert {task.token: task.stops for task in world.tasks.values()} == {"other": False, "slow": True}
        assert world.table.rows["other"].arn == other

    run(story())


@dataclass
class Plan:
    """What happens in one simulated world.

    Attributes:
        orders: for each order, the triggerer that starts it, the time, and the outcomes of its RunTask calls.
        events: the time, the triggerer, and for how many seconds it stalls; 0 means that it is killed.
        throttled: the seconds for which ECS throttles all requests.
        latency: the latencies of each triggerer's calls, repeated in a cycle.
        cancelled: additional starts of the same orders: the order, the triggerer, the time, and the seconds until the
            start is cancelled.
    """

    limit: int
    orders: list[tuple[int, float, list[Fault]]]
    events: list[tuple[float, int, float]] = field(default_factory=list)
    throttled: float = 0.0
    latency: list[float] = field(default_factory=lambda: [0.05])
    cancelled: list[tuple[int, int, float, float]] = field(default_factory=list)


_faults = st.lists(st.sampled_from(["none", "capacity", "capacity", "lost", "unheard"]), max_size=6)
_orders = st.lists(st.tuples(st.integers(0, 2), st.floats(0, 100), _faults), min_size=2, max_size=6)
_cancelled = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2), st.floats(0, 100), st.floats(0, 60)), max_size=4)
_latency = st.lists(st.floats(0.01, 20), min_size=1, max_size=5)


def plans(longest_stall: float) -> st.SearchStrategy[Plan]:
    """Returns a strategy for plans in which no triggerer stalls for longer than `longest_stall` seconds."""
    stall = st.one_of(st.just(0.0), st.floats(0.1, longest_stall))
    events = st.lists(st.tuples(st.floats(0, 300), st.integers(0, 2), stall), max_size=4)
    return st.builds(Plan, st.integers(1, 3), _orders, events, st.floats(0, 150), _latency, _cancelled)


async def played(plan: Plan) -> World:
    """Plays a plan until every order has its task, and returns the world."""
    world = World(plan.limit)
    world.throttled_until = world.clock() + plan.throttled
    triggerers = [Triggerer(world, plan.latency) for _ in range(3)]
    world.faults = {str(number): list(faults) for number, (_, _, faults) in enumerate(plan.orders)}

    async def order(number: int, by: int, delay: float) -> None:
        await asyncio.sleep(delay)
        try:
            await triggerers[by].start(str(number))
        except Killed:
            # another triggerer takes over the dead one's triggers half a minute later
            await asyncio.sleep(30)
            await Triggerer(world).start(str(number))

    async def event(at: float, by: int, stall: float) -> None:
        await asyncio.sleep(at)
        if stall:
            triggerers[by].stall(stall)
        else:
            triggerers[by].kill()

    async def cancelled(number: int, by: int, at: float, seconds: float) -> None:
        await asyncio.sleep(at)
        begun = asyncio.create_task(triggerers[by].start(str(number % len(plan.orders))))
        await asyncio.sleep(seconds)
        begun.cancel()
        await asyncio.wait([begun])
        assert begun.cancelled() or not isinstance(begun.exception(), Exception)

    begun = [order(number, by, delay) for number, (by, delay, _) in enumerate(plan.orders)]
    begun += [event(*one) for one in plan.events]
    begun += [cancelled(*one) for one in plan.cancelled]
    # all orders make progress, even if some triggerers are killed or late
    await asyncio.wait_for(asyncio.gather(*begun), _HOURS)
    return world


@given(plans(longest_stall=STALE / 3))
@settings(max_examples=60, deadline=None)
@example(Plan(1, [(0, 0, ["capacity"] * 6), (1, 1, [])]))
@example(Plan(1, [(0, 0, ["lost"]), (1, 1, [])], [(0.2, 0, 0.0)]))
@example(Plan(1, [(0, 0, ["capacity"] * 2), (1, 0, [])], latency=[2.0], cancelled=[(0, 1, 0, 9.0)]))
def test_there_are_never_more_tasks_than_slots(plan: Plan) -> None:
    async def story() -> None:
        world = await played(plan)
        assert world.most <= plan.limit
        assert world.without_a_row() == []

    run(story())


@given(plans(longest_stall=1000.0))
@settings(max_examples=60, deadline=None)
def test_every_task_has_a_slot_in_the_end_even_after_long_stalls(plan: Plan) -> None:
    async def story() -> None:
        world = await played(plan)
        assert [task for task in world.without_a_row() if not task.stops] == []
        assert sum(not task.stops for task in world.living()) <= plan.limit
        # no slot is leaked: each is freed after its task has ended
        await asyncio.sleep(world.duration)
        await maintenance(world)
        assert world.table.rows == {}

    run(story())
