"""`events.yaml`: what the local AWS does not enforce: the limits of the queues, and their encryption."""

from __future__ import annotations

from typing import Any

import cfnlint.decode.cfn_yaml
import pytest

from busco.events.queue import VISIBLE_AFTER
from tests.platforms import ROOT

RESOURCES = cfnlint.decode.cfn_yaml.load(str(ROOT / "deploy/aws/events.yaml"))["Resources"]
QUEUE, DEAD_LETTERS = (RESOURCES[name]["Properties"] for name in ("EventsQueue", "DeadLetters"))


def test_what_was_received_ten_times_becomes_a_dead_letter_and_is_kept_longer_than_a_message() -> None:
    assert QUEUE["RedrivePolicy"] == {
        "deadLetterTargetArn": {"Fn::GetAtt": ["DeadLetters", "Arn"]}, "maxReceiveCount": 10,
    }  # fmt: skip
    # a message keeps its age when it becomes a dead letter
    assert DEAD_LETTERS["MessageRetentionPeriod"] >= QUEUE["MessageRetentionPeriod"] + 7 * 86_400


def test_the_queue_hides_messages_for_as_long_as_the_service_expects_and_accepts_the_longest_events() -> None:
    assert QUEUE["VisibilityTimeout"] == VISIBLE_AFTER
    # an event can have 64 KB (S3 User Guide, "Event message structure"), and SQS accepts more by default
    assert "MaximumMessageSize" not in QUEUE
    # S3 sends to no FIFO queue
    assert "FifoQueue" not in QUEUE


@pytest.mark.parametrize("queue", [QUEUE, DEAD_LETTERS], ids=["messages", "dead letters"])
def test_messages_are_encrypted_with_an_own_key_if_one_is_given_and_otherwise_by_sqs(queue: dict[str, Any]) -> None:
    nothing = {"Ref": "AWS::NoValue"}
    assert queue["KmsMasterKeyId"] == {"Fn::If": ["HasKey", {"Ref": "KeyArn"}, nothing]}
    assert queue["SqsManagedSseEnabled"] == {"Fn::If": ["HasKey", nothing, True]}


def test_the_service_may_use_an_own_key() -> None:
    statements = RESOURCES["EventsPolicy"]["Properties"]["PolicyDocument"]["Statement"]
    (given,) = (one["Fn::If"] for one in statements if "Fn::If" in one)
    assert given == [
        "HasKey",
        {
            "Sid": "UseTheKey",
            "Effect": "Allow",
            "Action": ["kms:Decrypt", "kms:GenerateDataKey"],
            "Resource": {"Ref": "KeyArn"},
        },
        {"Ref": "AWS::NoValue"},
    ]
