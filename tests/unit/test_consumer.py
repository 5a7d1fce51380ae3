"""Messages become deliveries at least once: whatever fails, a message is deleted only after everything else is done."""

from __future__ import annotations

import json
import threading
from collections.abc import Collection, Sequence
from concurrent.futures import Executor, Future
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest

from busco.events.consumer import Consumer, OrderFailed
from busco.events.queue import Message
from busco.lake.records import IngestedObject, IngestOrder, IngestOutcome, utc_now

BUCKET = "landing"


def body(*keys: str, bucket: str = BUCKET) -> str:
    records = [
        {
            "eventVersion": "2.1",
            "eventSource": "aws:s3",
            "eventName": "ObjectCreated:Put",
            "s3": {"bucket": {"name": bucket}, "object": {"key": key, "size": 1, "eTag": "e", "versionId": "v"}},
        }
        for key in keys
    ]
    return json.dumps({"Records": records})


class MemoryQueue:
    """The queue's calls, in order; receives what was sent, at most ten messages at once."""

    def __init__(self) -> None:
        self.waiting: list[str] = []
        self.receives: dict[str, int] = {}
        self.deleted: list[str] = []
        self.rejected: dict[str, str] = {}
        self.reject_fails = False
        self.extended: list[tuple[str, int]] = []
        self.failing: list[Exception | None] = []
        self.made = "1"

    def created(self) -> str:
        return self.made

    def receive(self, wait: int) -> list[Message]:
        if self.failing and (error := self.failing.pop(0)):
            raise error
        part, self.waiting = self.waiting[:10], self.waiting[10:]
        found = []
        for text in part:
            self.receives[text] = self.receives.get(text, 0) + 1
            found.append(Message(text, f"{text} {self.receives[text]}", text, self.receives[text], utc_now()))
        return found

    def extend(self, messages: Sequence[Message], seconds: int = 120) -> None:
        self.extended += [(one.body, seconds) for one in messages]

    def delete(self, messages: Sequence[Message]) -> None:
        self.deleted += [one.body for one in messages]

    def reject(self, message: Message, reason: str) -> None:
        if self.reject_fails:
            raise OSError("no dead-letter queue")
        self.rejected[message.body] = reason


class World:
    """A consumer whose ingest and announcement can be made to fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("busco.events.consumer._RETRY_AFTER", 0.001)
        self.queue = MemoryQueue()
        self.orders: list[list[str]] = []
        self.order_ids: list[str] = []
        self.undelivered: list[str] = []
        self.transient: set[str] = set()
        self.announced: list[list[str]] = []
        self.poison: set[str] = set()
        self.ingest_fails: list[Exception] = []
        self.announce_fails: list[Exception] = []
        self.problems: list[str] = []
        self.consumer = self.started()

    def started(self) -> Consumer:
        return Consumer(
            self.queue,  # type: ignore[arg-type]
            BUCKET,
            self.ingest,
            self.announce,
            quiet=1,
            stop=threading.Event(),
            say=self.problems.append,
        )

    def ingest(self, order: IngestOrder) -> IngestOutcome:
        self.orders.append([one.key for one in order.objects])
        self.order_ids.append(order.order)
        if order.everything:
            return outcome(*self.undelivered, what="listed")
        if self.ingest_fails:
            raise self.ingest_fails.pop(0)
        if self.poison & {one.key for one in order.objects}:
            raise OrderFailed("exit status -9")
        return outcome(*(one.key for one in order.objects), transient=self.transient)

    def announce(self, found: IngestOutcome) -> None:
        assert not self.queue.deleted or self.announced, "a message was deleted before anything was announced"
        if self.announce_fails:
            raise self.announce_fails.pop(0)
        self.announced.append([one.key for one in found.objects])

    def send(self, *bodies: str) -> None:
        self.queue.waiting += bodies

    def work(self) -> None:
        while batch := self.consumer.collect(0):
            self.consumer.process(batch)


class AtOnce(Executor):
    """Runs what is submitted in the caller's thread."""

    def __init__(self, **_: Any) -> None:
        pass

    def submit(self, call: Any, /, *arguments: Any, **named: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(call(*arguments, **named))
        return done


def outcome(*keys: str, what: Any = "ingested", transient: Collection[str] = ()) -> IngestOutcome:
    objects = tuple(
        IngestedObject(
            key=key, version="v", etag="e", size=1, table="bronze.orders",
            outcome="refused" if key in transient else what, transient=key in transient,
        )
        for key in keys
    )  # fmt: skip
    return IngestOutcome(order="o", objects=objects, ended_at=utc_now())


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


def test_what_arrives_together_is_one_order_and_is_deleted_last(world: World) -> None:
    bodies = [body(f"orders/{number}.csv") for number in range(25)]
    world.send(*bodies)
    world.work()
    assert [len(order) for order in world.orders] == [25]
    assert (world.announced, sorted(world.queue.deleted)) == (world.orders, sorted(bodies))


def test_a_batch_is_what_arrives_until_the_queue_is_quiet_but_at_most_for_30_seconds(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, waits, left = 1000.0, list[int](), 0
    monkeypatch.setattr("busco.events.consumer.time", SimpleNamespace(monotonic=lambda: now))

    def receive(wait: int) -> list[Message]:
        nonlocal now, left
        now, left = now + 1, left - 1
        waits.append(wait)
        return [Message(str(now), "", "", 1, utc_now())] if left >= 0 else []

    monkeypatch.setattr(world.queue, "receive", receive)
    world.consumer.quiet = 3
    for arriving, expected in ((7, 7), (100, 30)):
        left = arriving
        waits.clear()
        assert len(world.consumer.collect(5)) == expected
        assert waits == [5, *[3] * (len(waits) - 1)]


def test_ten_thousand_objects_are_at_most_three_orders(world: World) -> None:
    world.send(*(body(f"orders/{number}.csv") for number in range(10_000)))
    world.work()
    assert [len(order) for order in world.orders] == [5000, 5000]
    assert len(world.queue.deleted) == 10_000


class Killed(BaseException):
    """The process died here."""


@pytest.mark.parametrize("at", ["ingest", "after ingest", "announce", "after announce", "delete"])
def test_what_a_killed_service_has_not_finished_the_next_one_finishes(
    world: World, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    step = at.rpartition(" ")[2]
    where: Any = world.queue if step == "delete" else world.consumer
    original = getattr(where, step)

    def killed(given: Any) -> Any:
        if at.startswith("after"):
            original(given)
        raise Killed

    world.send(body("orders/a.csv"))
    with monkeypatch.context() as patch:
        patch.setattr(where, step, killed)
        with pytest.raises(Killed):
            world.work()
    assert world.queue.deleted == []
    world.consumer = world.started()
    world.send(body("orders/a.csv"))
    world.work()
    assert world.announced[-1] == ["orders/a.csv"]
    assert world.queue.deleted == [body("orders/a.csv")]


def test_a_message_whose_deletion_failed_is_deleted_when_it_is_received_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.send(body("orders/a.csv"))
    with monkeypatch.context() as patch:
        patch.setattr(world.queue, "delete", lambda _: None)
        world.work()
    world.send(body("orders/a.csv"))
    world.work()
    assert world.queue.deleted == [body("orders/a.csv")]
    assert world.consumer._held == {}


def test_the_same_object_in_several_messages_is_ordered_once(world: World) -> None:
    same = json.loads(body("orders/a.csv"))
    world.send(*(json.dumps({**same, "n": number}) for number in range(3)))
    world.work()
    assert world.orders == [["orders/a.csv"]]
    assert len(world.queue.deleted) == 3


def test_a_message_that_is_received_twice_in_a_batch_is_deleted_by_its_last_receipt(world: World) -> None:
    world.send(body("orders/a.csv"), body("orders/a.csv"))
    world.work()
    assert world.orders == [["orders/a.csv"]]
    assert len(world.queue.deleted) == 1


def test_a_foreign_message_is_a_dead_letter_with_its_reason_and_does_not_stop_the_others(world: World) -> None:
    world.send("not JSON", body("orders/a.csv"), body("b.csv", bucket="other"))
    world.work()
    assert world.queue.rejected == {
        "not JSON": "it is not JSON",
        body("b.csv", bucket="other"): "it is about the bucket other",
    }
    assert world.queue.deleted == [body("orders/a.csv")]


def test_a_dead_letter_that_can_not_be_sent_holds_up_nothing(world: World) -> None:
    world.queue.reject_fails = True
    world.send("not JSON", body("orders/a.csv"))
    world.work()
    assert world.queue.deleted == [body("orders/a.csv")]
    assert world.consumer._held == {}, "it is received again, until SQS moves it"
    world.send(body("orders/b.csv"))
    world.work()
    assert world.announced[-1] == ["orders/b.csv"]


def test_a_partly_foreign_message_is_ingested_and_becomes_a_dead_letter(world: World) -> None:
    mixed = json.loads(body("orders/a.csv"))
    mixed["Records"].append({"eventSource": "aws:sqs"})
    world.send(json.dumps(mixed))
    world.work()
    assert world.orders == [["orders/a.csv"]]
    assert list(world.queue.rejected) == [json.dumps(mixed)]


def test_messages_that_need_no_action_are_deleted_without_an_order(world: World) -> None:
    test = json.dumps({"Service": "Amazon S3", "Event": "s3:TestEvent", "Bucket": BUCKET})
    world.send(test)
    world.work()
    assert (world.orders, world.announced, world.queue.deleted) == ([], [], [test])


@pytest.mark.parametrize("position", [0, 3, 7])
def test_an_object_that_makes_orders_fail_does_not_stop_the_others_and_is_left_for_the_dead_letters(
    world: World, position: int
) -> None:
    keys = [f"orders/{number}.csv" for number in range(8)]
    world.poison = {keys[position]}
    world.send(*map(body, keys))
    world.work()
    good = [key for key in keys if key != keys[position]]
    assert sorted(key for order in world.announced for key in order) == good
    assert sorted(world.queue.deleted) == sorted(map(body, good))
    assert world.queue.extended == [(body(keys[position]), 60)]
    # the whole, and two halves at each of three levels; after each failure, an order without objects
    assert len([order for order in world.orders if order]) == 7
    assert len([order for order in world.orders if not order]) == 4


def test_if_ingest_fails_without_any_object_no_object_is_to_blame(world: World) -> None:
    world.ingest_fails = [OrderFailed("the project can't be parsed") for _ in range(4)]
    keys = [f"orders/{number}.csv" for number in range(4)]
    world.send(*map(body, keys))
    world.work()
    assert world.problems[:2] == ["ingest fails without any object: the project can't be parsed"] * 2
    assert sorted(key for order in world.announced for key in order) == keys
    assert set(world.queue.receives.values()) == {1}


def test_an_object_that_may_be_accepted_later_is_received_again(world: World) -> None:
    world.transient = {"orders/a.csv"}
    world.send(body("orders/a.csv"), body("orders/b.csv"))
    world.work()
    assert world.queue.deleted == [body("orders/b.csv")]
    assert world.queue.extended == [(body("orders/a.csv"), 60)]
    assert world.consumer._held == {}


def test_a_message_is_received_again_until_the_last_of_its_objects_is_ingested(world: World) -> None:
    three = body("orders/1.csv", "orders/2.csv", "orders/3.csv")
    world.transient = {"orders/2.csv"}
    world.send(three)
    world.work()
    assert (world.queue.deleted, world.queue.extended) == ([], [(three, 60)])
    world.transient = set()
    world.send(three)
    world.work()
    assert world.queue.deleted == [three]


def test_the_message_of_an_object_that_is_refused_for_good_is_deleted(world: World) -> None:
    world.consumer.ingest = lambda order: outcome(*(one.key for one in order.objects), what="refused")
    world.send(body("orders/deleted.csv"))
    world.work()
    assert (world.queue.deleted, world.queue.extended) == ([body("orders/deleted.csv")], [])


def test_what_can_not_be_ingested_is_tried_less_and_less_often(world: World) -> None:
    world.transient = {"orders/a.csv"}
    for _ in range(10):
        world.send(body("orders/a.csv"))
        world.work()
    pauses = [seconds for _, seconds in world.queue.extended]
    assert pauses == [60, 120, 240, 480, 960, 1920, 3600, 3600, 3600, 3600]


def test_new_objects_do_not_wait_for_the_comparison(world: World) -> None:
    listing, ingested = threading.Event(), threading.Event()

    def compare(order: IngestOrder) -> IngestOutcome:
        assert order.everything
        listing.set()
        assert ingested.wait(10), "the new object waited for the comparison"
        world.consumer.stop.set()
        return outcome("orders/lost.csv", what="listed")

    def announce(found: IngestOutcome) -> None:
        world.announced.append([one.key for one in found.objects])
        if listing.wait(10):
            ingested.set()

    world.consumer.compare, world.consumer.announce = compare, announce
    world.send(body("orders/new.csv"))
    world.consumer.run()
    assert world.announced[0] == ["orders/new.csv"]


def test_a_comparison_that_finds_much_is_continued_after_its_last_key(world: World) -> None:
    afters: list[str] = []

    def compare(order: IngestOrder) -> IngestOutcome:
        afters.append(order.after)
        part = {"": ["a", "b"], "b": ["c", "d"], "d": ["e"]}[order.after]
        return outcome(*part, what="listed").model_copy(update={"more": part != ["e"]})

    world.consumer.compare = compare
    assert world.consumer.reconcile()
    assert afters == ["", "b", "d"]
    assert world.orders == [["a", "b"], ["c", "d"], ["e"]]


def test_new_objects_are_ingested_between_the_parts_of_a_comparison(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compare(order: IngestOrder) -> IngestOutcome:
        number = int(order.after or 0) + 1
        world.send(body(f"orders/new-{number}.csv"))
        if number == 3:
            world.consumer.stop.set()
        return outcome(str(number), what="listed").model_copy(update={"more": True})

    world.consumer.compare = compare
    monkeypatch.setattr("busco.events.consumer.ThreadPoolExecutor", AtOnce)
    world.consumer.run()
    assert (world.orders[0], world.orders[2]) == (["1"], ["2"])
    assert "orders/new-1.csv" in world.orders[1]


def test_reports_and_folders_start_no_order(world: World) -> None:
    folder = body("orders/").replace('"size": 1', '"size": 0')
    world.send(body("_reports/orders/a.csv.json"), folder)
    world.work()
    assert (world.orders, len(world.queue.deleted)) == ([], 2)


def test_messages_that_were_received_before_the_queue_failed_are_processed(world: World) -> None:
    world.queue.failing = [None, OSError("no queue")]
    world.send(*(body(f"orders/{number}.csv") for number in range(15)))
    world.work()
    assert [len(order) for order in world.orders] == [10, 5]
    assert len(world.queue.deleted) == 15
    assert world.consumer._held == {}


def test_an_outage_is_waited_out_with_the_messages_held(world: World) -> None:
    world.ingest_fails = [OSError("no S3"), OSError("no S3")]
    world.announce_fails = [OSError("no database")]
    world.send(body("orders/a.csv"))
    world.work()
    assert world.orders == [["orders/a.csv"]] * 3
    assert len(set(world.order_ids)) == 1, "a retry is the same order"
    assert world.announced == [["orders/a.csv"]]
    assert world.queue.receives == {body("orders/a.csv"): 1}
    assert world.problems == ["no S3", "no S3", "", "no database", ""]


def test_an_outage_of_ten_minutes_takes_few_calls(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("busco.events.consumer._RETRY_AFTER", 1.0)
    calls: list[float] = []

    class Stop(threading.Event):
        """Its waits are over at once."""

        now = 0.0

        def wait(self, timeout: float | None = None) -> bool:
            self.now += timeout or 0
            return False

    def receive(_: int) -> list[Message]:
        calls.append(stop.now)
        if stop.now < 600:
            raise OSError("AccessDenied")
        return []

    world.consumer.stop = stop = Stop()
    monkeypatch.setattr(world.queue, "receive", receive)
    assert world.consumer._until_it_works(lambda: world.consumer.collect(0)) == []
    assert [later - earlier for earlier, later in pairwise(calls)] == [1, 2, 4, 8, 16, 32, *[60] * 9]


@pytest.mark.parametrize("during", ["ingest", "announce"])
def test_a_consumer_that_is_stopped_deletes_nothing_that_is_not_done(world: World, during: str) -> None:
    def stop(*_: Any) -> Any:
        world.consumer.stop.set()
        raise OSError("stopped")

    setattr(world.consumer, during, stop)
    world.send(body("orders/a.csv"))
    world.consumer.process(world.consumer.collect(0))
    assert (world.queue.deleted, world.queue.rejected) == ([], {})


def test_held_messages_are_extended_until_they_are_done(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("busco.events.consumer._EXTEND_EVERY", 0.01)
    keeper = threading.Thread(target=world.consumer._keep)
    extended = threading.Event()

    def ingest(order: IngestOrder) -> IngestOutcome:
        seen = len(world.queue.extended)
        while len(world.queue.extended) < seen + 3:
            extended.wait(0.005)
        return outcome(*(one.key for one in order.objects))

    world.consumer.ingest = ingest
    world.send(body("orders/a.csv"))
    keeper.start()
    world.work()
    count = len(world.queue.extended)
    extended.wait(0.1)
    world.consumer.stop.set()
    keeper.join()
    assert {name for name, _ in world.queue.extended} == {body("orders/a.csv")}
    # the keeper may have begun one more round before the message was done
    assert len(world.queue.extended) <= count + 1


def test_a_service_that_is_paused_receives_and_compares_nothing_until_it_is_resumed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("busco.events.consumer._LOOK_WHILE_PAUSED", 0.001)
    looks: list[int] = []

    def paused() -> str:
        looks.append(len(world.orders) + len(world.queue.receives))
        return "" if len(looks) > 5 else "ana: maintenance"

    def announce(found: IngestOutcome) -> None:
        world.announced.append([one.key for one in found.objects])
        world.consumer.stop.set()

    world.consumer.paused, world.consumer.announce = paused, announce
    world.send(body("orders/a.csv"))
    world.consumer.run()
    assert looks[:6] == [0] * 6
    assert world.announced == [["orders/a.csv"]]


def test_objects_without_a_delivery_are_ingested_on_start_and_when_the_queue_is_new(world: World) -> None:
    world.consumer.loses_messages = True
    world.undelivered = ["orders/lost.csv"]
    taken: list[str] = []
    original = world.announce

    def announce(found: IngestOutcome) -> None:
        original(found)
        taken.append(found.objects[0].key)
        if len(taken) == 1:
            world.undelivered, world.queue.made = ["orders/lost too.csv"], "2"
        else:
            world.consumer.stop.set()

    world.consumer.announce = announce
    world.consumer.run()
    assert taken == ["orders/lost.csv", "orders/lost too.csv"]


def test_an_object_without_delivery_that_makes_orders_fail_does_not_stop_the_others(world: World) -> None:
    world.undelivered = [f"orders/{number}.csv" for number in range(4)]
    world.poison = {"orders/2.csv"}
    assert not world.consumer.reconcile()
    assert sorted(key for order in world.announced for key in order) == ["orders/0.csv", "orders/1.csv", "orders/3.csv"]
    world.poison = set()
    assert world.consumer.reconcile()


def test_a_failed_comparison_does_not_end_the_consumer(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("busco.events.consumer._RECONCILE_AGAIN", 0.0)
    listings: list[str] = []

    def ingest(order: IngestOrder) -> IngestOutcome:
        if order.everything:
            listings.append(order.order)
            raise OrderFailed("exit status 1")
        if len(listings) > 2:
            world.consumer.stop.set()
        world.send(body("orders/b.csv"))
        return outcome(*(one.key for one in order.objects))

    world.consumer.ingest = ingest
    world.send(body("orders/a.csv"))
    world.consumer.run()
    assert len(set(listings)) == 3


def test_what_can_never_be_ingested_repeats_the_comparison_less_and_less_often(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, listings = 1000.0, []
    monkeypatch.setattr("busco.events.consumer.time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr("busco.events.consumer.ThreadPoolExecutor", AtOnce)
    world.undelivered, world.transient = ["orders/a.csv"], {"orders/a.csv"}

    def collect(_: int) -> list[Message]:
        nonlocal now
        now += 100.0
        return []

    def ingest(order: IngestOrder) -> IngestOutcome:
        if order.everything:
            listings.append(now)
            if len(listings) == 12:
                world.transient, world.undelivered = set(), []
            if len(listings) == 14:
                world.consumer.stop.set()
        return World.ingest(world, order)

    monkeypatch.setattr(world.consumer, "collect", collect)
    world.consumer.ingest = ingest
    world.consumer.run()
    pauses = [later - earlier for earlier, later in pairwise(listings)]
    assert pauses == [300.0 * 2**number for number in range(9)] + [86_400.0] * 4
