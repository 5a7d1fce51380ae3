"""A landing bucket that somebody else created notifies the queue, and goes on to notify whatever it did before."""

from __future__ import annotations

from typing import Any

import pytest
from botocore.exceptions import ClientError

from busco.errors import BuscoError
from busco.events.attach import attach

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
