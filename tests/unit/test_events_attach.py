"""What a landing bucket notifies of its new objects: whether that includes the queue, and how it is added."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import ClientError

from busco.errors import BuscoError
from busco.events.attach import attach, check, way

QUEUE = "arn:aws:sqs:us-east-1:000000000000:busco-events"
TOPIC = {"Id": "theirs", "TopicArn": "arn:aws:sns:us-east-1:000000000000:t", "Events": ["s3:ObjectRemoved:*"]}
OTHER = {"Id": "other", "QueueArn": f"{QUEUE}-other", "Events": ["s3:ObjectRemoved:*"]}


class Bucket:
    """A bucket's notifications, as S3's API shows and replaces them."""

    def __init__(self, refuses: str = "", **found: Any) -> None:
        self.found, self.refuses, self.puts = found, refuses, 0

    def get_bucket_notification_configuration(self, Bucket: str) -> dict[str, Any]:
        assert Bucket == "landing"
        return {**self.found, "ResponseMetadata": {}}

    def put_bucket_notification_configuration(self, Bucket: str, NotificationConfiguration: Any) -> None:
        assert Bucket == "landing"
        if self.refuses:
            raise ClientError({"Error": {"Code": self.refuses, "Message": "they overlap"}}, "Put")
        self.found, self.puts = NotificationConfiguration, self.puts + 1


def test_the_queue_is_added_once_and_everything_else_is_kept() -> None:
    bucket = Bucket(TopicConfigurations=[TOPIC], QueueConfigurations=[OTHER], EventBridgeConfiguration={})
    assert attach(bucket, "landing", QUEUE)
    own = {"Id": "busco-events", "QueueArn": QUEUE, "Events": ["s3:ObjectCreated:*"]}
    expected = {
        "TopicConfigurations": [TOPIC], "QueueConfigurations": [OTHER, own], "EventBridgeConfiguration": {},
    }  # fmt: skip
    assert bucket.found == expected
    assert not attach(bucket, "landing", QUEUE)
    assert bucket.puts == 1
    # another queue replaces the one that was attached before
    assert attach(bucket, "landing", f"{QUEUE}-new")
    assert [one["QueueArn"] for one in bucket.found["QueueConfigurations"]] == [f"{QUEUE}-other", f"{QUEUE}-new"]


def test_a_notification_of_some_objects_only_is_not_enough() -> None:
    rules = [{"Name": "prefix", "Value": "orders/"}]
    some = {"QueueArn": QUEUE, "Events": ["s3:ObjectCreated:*"], "Filter": {"Key": {"FilterRules": rules}}}
    bucket = Bucket(QueueConfigurations=[some])
    assert attach(bucket, "landing", QUEUE)
    # S3 accepts no second notification of the same objects
    assert [one.get("Id") for one in bucket.found["QueueConfigurations"]] == ["busco-events"]


def test_a_refusal_by_s3_says_what_to_do() -> None:
    with pytest.raises(BuscoError, match="they overlap") as found:
        attach(Bucket("InvalidArgument"), "landing", QUEUE)
    # the queue accepts messages of a topic or rule only if the template names it
    assert "EventBridge" in found.value.hint
    assert "TopicArn or RuleArn of deploy/aws/events.yaml" in found.value.hint
    with pytest.raises(ClientError):
        attach(Bucket("AccessDenied"), "landing", QUEUE)


# -- the check --------------------------------------------------------------------------------------------------------


def to(arn: str, events: str = "s3:ObjectCreated:*", kind: str = "Queue", **filters: str) -> dict[str, Any]:
    """Returns a notification of one kind, as S3 shows it; `filters` are the values of its filter rules."""
    found: dict[str, Any] = {f"{kind}Arn": arn, "Events": events.split()}
    if filters:
        rules = [{"Name": name.title(), "Value": value} for name, value in filters.items()]
        found["Filter"] = {"Key": {"FilterRules": rules}}
    return {f"{kind}Configurations": [found]}


SNS = TOPIC["TopicArn"]
FUNCTION = {"LambdaFunctionConfigurations": [{"LambdaFunctionArn": "arn:f", "Events": ["s3:ObjectCreated:*"]}]}
EVENTBRIDGE: dict[str, Any] = {"EventBridgeConfiguration": {}}
WAYS: list[tuple[str, dict[str, Any], str]] = [
    ("nothing", {}, ""),
    ("this queue", to(QUEUE), "queue"),
    ("this queue, also of removed objects", to(QUEUE, "s3:ObjectRemoved:* s3:ObjectCreated:*"), "queue"),
    # rules with an empty value match any key
    ("this queue, with an empty filter", to(QUEUE, prefix="", suffix=""), "queue"),
    ("another queue", to(f"{QUEUE}-other"), ""),
    ("this queue's name in another region", to(QUEUE.replace("us-east-1", "us-east-2")), ""),
    ("this queue, of some new objects", to(QUEUE, "s3:ObjectCreated:Put s3:ObjectCreated:Copy"), ""),
    ("this queue, of removed objects", to(QUEUE, "s3:ObjectRemoved:*"), ""),
    ("this queue, of a prefix", to(QUEUE, prefix="orders/"), ""),
    ("this queue, of a suffix", to(QUEUE, prefix="", suffix=".csv"), ""),
    ("a topic", to(SNS, kind="Topic"), "topic"),
    ("a topic, of removed objects", to(SNS, "s3:ObjectRemoved:*", kind="Topic"), ""),
    ("a topic, of a prefix", to(SNS, kind="Topic", prefix="orders/"), ""),
    ("EventBridge", EVENTBRIDGE, "EventBridge"),
    ("EventBridge, and this queue of a prefix", {**EVENTBRIDGE, **to(QUEUE, prefix="orders/")}, "EventBridge"),
    ("EventBridge, and this queue", {**EVENTBRIDGE, **to(QUEUE)}, "queue"),
    ("a function", FUNCTION, ""),
]


@pytest.mark.parametrize(("found", "expected"), [one[1:] for one in WAYS], ids=[one[0] for one in WAYS])
def test_only_notifications_of_all_new_objects_can_reach_the_queue(found: dict[str, Any], expected: str) -> None:
    assert way(found, QUEUE) == expected
    # what is good is left alone, and everything else is replaced by what is good
    bucket = Bucket(**found)
    assert attach(bucket, "landing", QUEUE) is (expected != "queue")
    assert way(bucket.found, QUEUE) == "queue"


class NoQueue(Exception):
    pass


def sqs(arn: str = QUEUE) -> Any:
    """Returns a client that knows the queue with the URL `url`."""

    def get_queue_attributes(QueueUrl: str, AttributeNames: list[str]) -> dict[str, Any]:
        assert AttributeNames == ["QueueArn"]
        if QueueUrl != "url":
            raise NoQueue
        return {"Attributes": {"QueueArn": arn}}

    exceptions = SimpleNamespace(QueueDoesNotExist=NoQueue)
    return SimpleNamespace(get_queue_attributes=get_queue_attributes, exceptions=exceptions)


@pytest.mark.parametrize(
    ("found", "seen"),
    [
        (to(QUEUE), f"s3://landing notifies {QUEUE} of all new objects"),
        (
            {**to(SNS, kind="Topic"), **to(f"{QUEUE}-other", "s3:ObjectRemoved:*")},
            f"s3://landing notifies the topic {SNS} of all new objects; whether the topic notifies {QUEUE} can't be "
            "checked here",
        ),
        (
            EVENTBRIDGE,
            f"s3://landing notifies EventBridge of all new objects; whether a rule there notifies {QUEUE} can't be "
            "checked here",
        ),
    ],
)
def test_the_check_says_how_new_objects_reach_the_queue(found: dict[str, Any], seen: str) -> None:
    assert check(Bucket(**found), sqs(), "landing", "url") == seen


@pytest.mark.parametrize(
    ("found", "instead"),
    [
        ({}, "nothing"),
        (to(f"{QUEUE}-other"), f"{QUEUE}-other of s3:ObjectCreated:*"),
        (to(QUEUE, "s3:ObjectCreated:Put s3:ObjectRemoved:*"), f"{QUEUE} of s3:ObjectCreated:Put, s3:ObjectRemoved:*"),
        (
            {**to(QUEUE, prefix="orders/", suffix=".csv"), **FUNCTION},
            f"{QUEUE} of s3:ObjectCreated:* (prefix orders/, suffix .csv), arn:f of s3:ObjectCreated:*",
        ),
    ],
)
def test_the_check_fails_with_what_the_bucket_notifies_instead_and_the_command(
    found: dict[str, Any], instead: str
) -> None:
    with pytest.raises(BuscoError) as raised:
        check(Bucket(**found), sqs(), "landing", "url")
    assert raised.value.message == f"s3://landing does not notify {QUEUE} of all new objects; it notifies {instead}"
    assert f"busco events attach {QUEUE}" in raised.value.hint


def test_a_queue_that_does_not_exist_fails_the_check() -> None:
    with pytest.raises(BuscoError, match="there is no queue elsewhere") as raised:
        check(Bucket(**to(QUEUE)), sqs(), "landing", "elsewhere")
    assert "BUSCO_EVENTS_QUEUE" in raised.value.hint
