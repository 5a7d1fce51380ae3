"""The queue's calls, with a queue that answers as SQS does (SQS API reference)."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from botocore.exceptions import ClientError

from busco.events.queue import Message, Queue
from busco.lake.records import utc_now

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

    def receive_message(self, QueueUrl: str, VisibilityTimeout: int, **_: Any) -> dict[str, Any]:
        self.now += 0.1
        found = [one for one in self.messages[QueueUrl] if one["visible"] <= self.now][:10]
        for one in found:
            one["visible"] = self.now + VisibilityTimeout
        return {"Messages": [{**one, "ReceiptHandle": one["MessageId"]} for one in found]}

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
