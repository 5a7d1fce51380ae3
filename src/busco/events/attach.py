"""What a landing bucket notifies of its new objects: whether that includes the queue, and how it is added.

`lake.yaml` sets the notification of the bucket that it creates. A bucket has one configuration for all of its
notifications, so anybody who writes a notification of their own can remove ours by mistake.
"""

from __future__ import annotations

from typing import Any, Literal

from botocore.exceptions import ClientError

from busco.errors import BuscoError

_ID = "busco-events"
_CREATED = "s3:ObjectCreated:*"


def attach(s3: Any, bucket: str, queue_arn: str) -> bool:
    """Adds the queue to a bucket's notifications, and keeps all others; returns whether anything has changed.

    Raises:
        BuscoError: S3 refuses the notification: the bucket notifies something else of the same objects, or the queue
            does not accept the bucket's messages.
    """
    found = s3.get_bucket_notification_configuration(Bucket=bucket)
    found.pop("ResponseMetadata", None)
    if way(found, queue_arn) == "queue":
        return False
    # an earlier call has made those with our id; a notification of some objects would overlap with that of all
    others = [
        one for one in found.get("QueueConfigurations", []) if one.get("Id") != _ID and one["QueueArn"] != queue_arn
    ]
    own = {"Id": _ID, "QueueArn": queue_arn, "Events": [_CREATED]}
    try:
        s3.put_bucket_notification_configuration(
            Bucket=bucket, NotificationConfiguration={**found, "QueueConfigurations": [*others, own]}
        )
    except ClientError as error:
        code, message = error.response["Error"]["Code"], error.response["Error"].get("Message", "")
        if code != "InvalidArgument":
            raise
        raise BuscoError(
            f"S3 does not let s3://{bucket} notify {queue_arn}: {message}",
            "if the bucket notifies something else of new objects already, let it notify an SNS topic or EventBridge, "
            "and let that one notify the queue, which needs TopicArn or RuleArn of deploy/aws/events.yaml; otherwise, "
            "check LandingBucketName of that template",
        ) from error
    return True


def check(s3: Any, sqs: Any, bucket: str, queue_url: str) -> str:
    """Returns in words how the queue is notified of all new objects in a bucket.

    Raises:
        BuscoError: it is not, or there is no such queue.
    """
    try:
        answer = sqs.get_queue_attributes(QueueUrl=queue_url, AttributeNames=["QueueArn"])
    except sqs.exceptions.QueueDoesNotExist as error:
        raise BuscoError(
            f"there is no queue {queue_url}", "deploy deploy/aws/events.yaml, or correct BUSCO_EVENTS_QUEUE"
        ) from error
    queue_arn = answer["Attributes"]["QueueArn"]
    found = s3.get_bucket_notification_configuration(Bucket=bucket)
    match way(found, queue_arn):
        case "queue":
            return f"s3://{bucket} notifies {queue_arn} of all new objects"
        case "topic":
            to, last = f"the topic {_topics(found)[0]['TopicArn']}", "the topic"
        case "EventBridge":
            to, last = "EventBridge", "a rule there"
        case _:
            instead = ", ".join(_described(one) for one in _all(found)) or "nothing"
            raise BuscoError(
                f"s3://{bucket} does not notify {queue_arn} of all new objects; it notifies {instead}",
                f"as an administrator of the bucket, run: busco events attach {queue_arn}",
            )
    return f"s3://{bucket} notifies {to} of all new objects; whether {last} notifies {queue_arn} can't be checked here"


def way(configuration: dict[str, Any], queue_arn: str) -> Literal["queue", "topic", "EventBridge", ""]:
    """Returns how notifications of all of a bucket's new objects can reach the queue; '' if they can't.

    If the bucket notifies the queue itself, they do. A topic or EventBridge has to pass them on, which the bucket's
    configuration does not show.
    """
    queues = configuration.get("QueueConfigurations", [])
    if any(one["QueueArn"] == queue_arn and _is_for_all(one) for one in queues):
        return "queue"
    if _topics(configuration):
        return "topic"
    return "EventBridge" if "EventBridgeConfiguration" in configuration else ""


def _topics(configuration: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the notifications that tell a topic of all new objects."""
    return [one for one in configuration.get("TopicConfigurations", []) if _is_for_all(one)]


def _is_for_all(notification: dict[str, Any]) -> bool:
    """Whether a notification is about all new objects: for all ways to create them, and without a filter."""
    return _CREATED in notification["Events"] and not _rules(notification)


def _rules(notification: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the rules of a notification's filter, without those with an empty value, which match any key."""
    rules = notification.get("Filter", {}).get("Key", {}).get("FilterRules", [])
    return [rule for rule in rules if rule.get("Value")]


def _all(configuration: dict[str, Any]) -> list[dict[str, Any]]:
    kinds = ("QueueConfigurations", "TopicConfigurations", "LambdaFunctionConfigurations")
    return [one for kind in kinds for one in configuration.get(kind, [])]


def _described(notification: dict[str, Any]) -> str:
    target = next(notification[name] for name in ("QueueArn", "TopicArn", "LambdaFunctionArn") if name in notification)
    rules = ", ".join(f"{rule['Name'].lower()} {rule['Value']}" for rule in _rules(notification))
    return f"{target} of {', '.join(notification['Events'])}" + (f" ({rules})" if rules else "")
