"""The queue of the landing bucket's notifications, and its dead letters (Amazon SQS, standard queues)."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

from botocore.exceptions import ClientError

log = logging.getLogger(__name__)

# Seconds for which a received message is hidden from other receivers. It is received again this long after its receiver
# was killed.
VISIBLE_AFTER = 120
LONG_POLL = 5  # seconds for which the service waits for a first message
_BATCH = 10  # the most messages in one call (SQS API reference)
_REASON = "busco.reason"
_LONGEST_REASON = 1000  # characters
_LONGEST_HIDDEN = 43_200  # seconds (SQS Developer Guide, "Visibility timeout")
# what SQS answers if a message with its attributes is too long (SQS API reference, SendMessage)
_TOO_LONG = ("InvalidParameterValue", "AWS.SimpleQueueService.BatchRequestTooLong")
_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Message:
    """A received message.

    Attributes:
        id: the same each time the message is received.
        handle: identifies this receipt of the message.
        receives: how many times the message has been received, including this time.
        sent_at: when it was sent (UTC).
        reason: why it became a dead letter; '' if SQS moved it, or if it is not a dead letter.
    """

    id: str
    handle: str
    body: str
    receives: int
    sent_at: datetime
    reason: str = ""


@dataclass(frozen=True)
class Counts:
    """Approximate numbers of messages: waiting, received but not deleted, and dead letters."""

    waiting: int
    in_flight: int
    dead_letters: int


class Queue:
    """A queue and its dead-letter queue. Thread-safe.

    SQS hides a message for at most 12 hours after it was received (SQS Developer Guide, "Visibility timeout").

    Args:
        sqs: a boto3 SQS client whose read timeout is longer than 20 seconds, the longest wait.
        url, dead_letters: the URLs of the two queues.
    """

    def __init__(self, sqs: Any, url: str, dead_letters: str) -> None:
        self._sqs, self.url, self.dead_letters = sqs, url, dead_letters

    def receive(self, wait: int) -> list[Message]:
        """Returns up to ten messages, as soon as there are any, and [] if there are none for `wait` seconds."""
        return self._receive(self.url, wait, VISIBLE_AFTER)

    def extend(self, messages: Sequence[Message], seconds: int = VISIBLE_AFTER) -> None:
        """Hides received messages from other receivers for `seconds` from now."""
        for part in _parts(messages):
            entries = [
                {"Id": str(number), "ReceiptHandle": one.handle, "VisibilityTimeout": seconds}
                for number, one in enumerate(part)
            ]
            answer = self._sqs.change_message_visibility_batch(QueueUrl=self.url, Entries=entries)
            for failed in answer.get("Failed", ()):
                one = part[int(failed["Id"])].id
                log.warning("the visibility timeout of message %s can't be extended: %s", one, failed.get("Message"))

    def delete(self, messages: Sequence[Message]) -> None:
        """Deletes received messages. One that can't be deleted is received again, and has no further effect then."""
        self._delete(self.url, messages)

    def reject(self, message: Message, reason: str) -> None:
        """Moves a message to the dead letters, with the reason. If SQS doesn't accept both together, because they are
        too long, the reason is only logged."""
        text = "".join(one if _is_allowed(one) else "?" for one in reason)[:_LONGEST_REASON]
        attributes = {_REASON: {"DataType": "String", "StringValue": text}}
        try:
            self._sqs.send_message(QueueUrl=self.dead_letters, MessageBody=message.body, MessageAttributes=attributes)
        except ClientError as error:
            if error.response["Error"]["Code"] not in _TOO_LONG:
                raise
            log.warning("message %s is too long to carry the reason: %s", message.id, text)
            self._sqs.send_message(QueueUrl=self.dead_letters, MessageBody=message.body)
        self.delete([message])

    def created(self) -> str:
        """Returns when the queue was created (seconds since the epoch, as text), which identifies it among queues with
        the same name."""
        answer = self._sqs.get_queue_attributes(QueueUrl=self.url, AttributeNames=["CreatedTimestamp"])
        return str(answer["Attributes"]["CreatedTimestamp"])

    def counts(self) -> Counts:
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        own, dead = (
            self._sqs.get_queue_attributes(QueueUrl=url, AttributeNames=names)["Attributes"]
            for url in (self.url, self.dead_letters)
        )
        return Counts(int(own[names[0]]), int(own[names[1]]), sum(int(dead[name]) for name in names))

    def dead(self, hidden: int) -> Iterator[Message]:
        """Yields the dead letters.

        Args:
            hidden: the seconds for which they are hidden from others; it must be longer than the caller needs. Two
                seconds are added for each call that receives some, so that none becomes visible again before the last
                one is received.
        """
        hidden = min(hidden + 2 * (self.counts().dead_letters // _BATCH), _LONGEST_HIDDEN)
        seen: set[str] = set()
        while found := [one for one in self._receive(self.dead_letters, 1, hidden) if one.id not in seen]:
            seen |= {one.id for one in found}
            yield from found

    def release_dead(self, messages: Sequence[Message]) -> None:
        """Makes dead letters visible to others again."""
        for part in _parts(messages):
            entries = [
                {"Id": str(number), "ReceiptHandle": one.handle, "VisibilityTimeout": 0}
                for number, one in enumerate(part)
            ]
            self._sqs.change_message_visibility_batch(QueueUrl=self.dead_letters, Entries=entries)

    def replay(self, message: Message) -> None:
        """Sends a dead letter to the queue again."""
        self._sqs.send_message(QueueUrl=self.url, MessageBody=message.body)
        self._delete(self.dead_letters, [message])

    def _receive(self, url: str, wait: int, hidden: int) -> list[Message]:
        answer = self._sqs.receive_message(
            QueueUrl=url,
            MaxNumberOfMessages=_BATCH,
            WaitTimeSeconds=wait,
            VisibilityTimeout=hidden,
            AttributeNames=["ApproximateReceiveCount", "SentTimestamp"],
            MessageAttributeNames=[_REASON],
        )
        return [_message(one) for one in answer.get("Messages", ())]

    def _delete(self, url: str, messages: Sequence[Message]) -> None:
        for part in _parts(messages):
            entries = [{"Id": str(number), "ReceiptHandle": one.handle} for number, one in enumerate(part)]
            answer = self._sqs.delete_message_batch(QueueUrl=url, Entries=entries)
            for failed in answer.get("Failed", ()):
                log.warning("message %s can't be deleted: %s", part[int(failed["Id"])].id, failed.get("Message"))


def _is_allowed(character: str) -> bool:
    """Whether SQS accepts a character (SQS API reference, SendMessage)."""
    code = ord(character)
    return character in "\t\n\r" or 0x20 <= code <= 0xD7FF or 0xE000 <= code <= 0xFFFD or code >= 0x10000


def _message(given: dict[str, Any]) -> Message:
    attributes = given.get("Attributes", {})
    return Message(
        id=given["MessageId"],
        handle=given["ReceiptHandle"],
        body=given["Body"],
        receives=int(attributes.get("ApproximateReceiveCount", 1)),
        sent_at=datetime.fromtimestamp(int(attributes.get("SentTimestamp", 0)) / 1000, UTC),
        reason=given.get("MessageAttributes", {}).get(_REASON, {}).get("StringValue", ""),
    )


def _parts(items: Sequence[_Item]) -> Iterator[Sequence[_Item]]:
    for start in range(0, len(items), _BATCH):
        yield items[start : start + _BATCH]
