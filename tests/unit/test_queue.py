"""The queue's calls, with a queue that answers as SQS does (SQS API reference)."""

from __future__ import annotations

import json
import logging
import threading
from typing import Any

import pytest
from botocore.exceptions import ClientError

from busco.aws import CLIENT_CONFIG
from busco.events.consumer import Consumer
from busco.events.queue import LONG_POLL, VISIBLE_AFTER, Message, Queue
from busco.lake.records import IngestOrder, IngestOutcome, utc_now

URL, DEAD = "https://sqs.example.com/1/events", "https://sqs.example.com/1/events-dead-letters"
LONGEST = 1_048_576  # bytes of a message with its attributes


def refused(code: str, name: str) -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": code}}, name)


class Sqs:
    """Messages by queue, with a clock: each call takes a tenth of a second."""

    def __init__(self) -> None:
        self.now = 0.0
        self.messages: dict[str, list[dict[str, Any]]] = {URL: [], DEAD: []}
        self.undeletable: set[str] = set()
        self.denied = False
        self.waits: list[int] = []

    def put(self, url: str, *bodies: str) -> None:
        start = len(self.messages[url])
        self.messages[url] += [
            {"MessageId": f"{url}-{start + number}", "Body": body, "visible": 0.0} for number, body in enumerate(bodies)
        ]

    def send_message(self, QueueUrl: str, MessageBody: str, MessageAttributes: dict[str, Any] | None = None) -> None:
        if self.denied:
            raise refused("AccessDenied", "SendMessage")
        text = "".join(value["StringValue"] for value in (MessageAttributes or {}).values())
        if len(MessageBody.encode()) + len(text.encode()) > LONGEST:
            raise refused("InvalidParameterValue", "SendMessage")
        if any(not (one in "\t\n\r" or " " <= one <= "\ud7ff" or "\ue000" <= one <= "\ufffd") for one in text):
            raise refused("InvalidMessageContents", "SendMessage")
        self.put(QueueUrl, MessageBody)
        if MessageAttributes:
            self.messages[QueueUrl][-1]["MessageAttributes"] = MessageAttributes

    def receive_message(
        self, QueueUrl: str, VisibilityTimeout: int, WaitTimeSeconds: int, MaxNumberOfMessages: int, **_: Any
    ) -> dict[str, Any]:
        assert MaxNumberOfMessages == 10
        self.waits.append(WaitTimeSeconds)
        self.now += 0.1
        found = [one for one in self.messages[QueueUrl] if one["visible"] <= self.now][:10]
        for one in found:
            one["visible"] = self.now + VisibilityTimeout
        return {"Messages": [{**one, "ReceiptHandle": one["MessageId"]} for one in found]}

    def change_message_visibility_batch(self, QueueUrl: str, Entries: list[dict[str, Any]]) -> dict[str, Any]:
        assert len(Entries) <= 10
        hidden = {one["ReceiptHandle"]: one["VisibilityTimeout"] for one in Entries}
        for one in self.messages[QueueUrl]:
            if one["MessageId"] in hidden:
                one["visible"] = self.now + hidden[one["MessageId"]]
        return {}

    def delete_message_batch(self, QueueUrl: str, Entries: list[dict[str, str]]) -> dict[str, Any]:
        assert len(Entries) <= 10
        failed = [one for one in Entries if one["ReceiptHandle"] in self.undeletable]
        gone = {one["ReceiptHandle"] for one in Entries if one not in failed}
        self.messages[QueueUrl] = [one for one in self.messages[QueueUrl] if one["MessageId"] not in gone]
        return {"Failed": [{"Id": one["Id"], "Message": "the receipt handle has expired"} for one in failed]}

    def get_queue_attributes(self, QueueUrl: str, AttributeNames: list[str]) -> dict[str, Any]:
        visible = [one for one in self.messages[QueueUrl] if one["visible"] <= self.now]
        numbers = len(visible), len(self.messages[QueueUrl]) - len(visible)
        return {"Attributes": dict(zip(AttributeNames, map(str, numbers), strict=True))}


@pytest.fixture
def sqs() -> Sqs:
    return Sqs()


@pytest.fixture
def queue(sqs: Sqs) -> Queue:
    return Queue(sqs, URL, DEAD)


def received(sqs: Sqs, queue: Queue, body: str) -> Message:
    sqs.put(URL, body)
    (message,) = queue.receive(0)
    return message


def test_a_dead_letter_has_its_reason_and_is_gone_from_the_queue(sqs: Sqs, queue: Queue) -> None:
    queue.reject(received(sqs, queue, "not JSON"), "it is not JSON")
    assert sqs.messages[URL] == []
    (dead,) = queue.dead(hidden=60)
    assert (dead.body, dead.reason) == ("not JSON", "it is not JSON")


def test_a_message_of_full_size_becomes_a_dead_letter_without_its_reason(
    sqs: Sqs, queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    queue.reject(received(sqs, queue, "x" * LONGEST), "it is not JSON")
    assert sqs.messages[URL] == []
    (dead,) = queue.dead(hidden=60)
    assert dead.reason == ""
    assert "it is not JSON" in caplog.text


@pytest.mark.parametrize("reason", ["\uffff and \x00", "\ud800", "x" * 3_000_000])
def test_any_reason_is_accepted(sqs: Sqs, queue: Queue, reason: str) -> None:
    queue.reject(received(sqs, queue, "a"), reason)
    (dead,) = queue.dead(hidden=60)
    assert dead.reason == reason.replace("\uffff", "?").replace("\x00", "?").replace("\ud800", "?")[:1000]


def test_a_message_that_can_not_be_moved_stays_in_the_queue(sqs: Sqs, queue: Queue) -> None:
    message = received(sqs, queue, "not JSON")
    sqs.denied = True
    with pytest.raises(ClientError):
        queue.reject(message, "it is not JSON")
    assert [one["Body"] for one in sqs.messages[URL]] == ["not JSON"]


def test_thousands_of_dead_letters_are_all_listed_although_listing_takes_a_minute(sqs: Sqs, queue: Queue) -> None:
    sqs.put(DEAD, *(str(number) for number in range(5000)))
    assert len(list(queue.dead(hidden=30))) == 5000


def test_a_message_that_can_not_be_deleted_is_named_and_the_others_are_deleted(
    sqs: Sqs, queue: Queue, caplog: pytest.LogCaptureFixture
) -> None:
    sqs.put(URL, *(str(number) for number in range(10)))
    messages = queue.receive(0)
    sqs.undeletable = {messages[3].handle}
    with caplog.at_level(logging.WARNING):
        queue.delete(messages)
    assert [one["Body"] for one in sqs.messages[URL]] == ["3"]
    assert f"message {messages[3].id} can't be deleted: the receipt handle has expired" in caplog.text


def test_messages_are_deleted_ten_at_a_time(sqs: Sqs, queue: Queue) -> None:
    sqs.put(URL, *(str(number) for number in range(25)))
    messages = [one for _ in range(3) for one in queue.receive(0)]
    queue.delete([Message(one.id, one.handle, one.body, 1, utc_now()) for one in messages])
    assert sqs.messages[URL] == []


def test_a_request_waits_for_messages_and_is_not_given_up_before_sqs_answers(sqs: Sqs, queue: Queue) -> None:
    queue.receive(LONG_POLL)
    assert sqs.waits == [LONG_POLL]
    # SQS accepts waits of up to 20 seconds
    assert 0 < LONG_POLL <= 20 < CLIENT_CONFIG["read_timeout"]


def test_a_dead_letter_that_is_replayed_is_a_message_again(sqs: Sqs, queue: Queue) -> None:
    sqs.put(DEAD, "first", "second")
    first, second = queue.dead(hidden=60)
    queue.release_dead([second])
    queue.replay(first)
    assert [one.body for one in queue.receive(0)] == ["first"]
    assert [one.body for one in queue.dead(hidden=60)] == ["second"]


def test_work_of_three_timeouts_shows_none_of_its_messages_to_a_second_service(sqs: Sqs, queue: Queue) -> None:
    for number in range(15):
        item = {"key": f"orders/{number}.csv", "size": 1, "eTag": "e"}
        record = {"eventVersion": "2.1", "eventSource": "aws:s3", "eventName": "ObjectCreated:Put"}
        sqs.put(URL, json.dumps({"Records": [{**record, "s3": {"bucket": {"name": "landing"}, "object": item}}]}))
    second, seen, orders = Queue(sqs, URL, DEAD), list[Message](), list[int]()

    class Stop(threading.Event):
        """Its waits pass at once, by the queue's clock; after three timeouts, one of them ends the thread that extends
        the messages."""

        def wait(self, timeout: float | None = None) -> bool:
            sqs.now += timeout or 0
            seen.extend(second.receive(0))
            return sqs.now > 3 * VISIBLE_AFTER

    def ingest(order: IngestOrder) -> IngestOutcome:
        orders.append(len(order.objects))
        consumer._keep()
        return IngestOutcome(order=order.order, objects=(), ended_at=utc_now())

    consumer = Consumer(queue, "landing", ingest, lambda _: None, quiet=0, stop=Stop())
    consumer.process(consumer.collect(0))
    assert (seen, orders, sqs.messages[URL]) == ([], [15], [])
