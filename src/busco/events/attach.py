"""Makes a landing bucket that our templates did not create notify the queue of its new objects."""

from __future__ import annotations

from typing import Any

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
    queues = found.get("QueueConfigurations", [])
    if any(one["QueueArn"] == queue_arn and _is_for_all(one) for one in queues):
        return False
    # an earlier call has made those with our id; a notification of some objects would overlap with that of all
    others = [one for one in queues if one.get("Id") != _ID and one["QueueArn"] != queue_arn]
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


def _is_for_all(configuration: dict[str, Any]) -> bool:
    """Whether a notification is about all new objects: for all ways to create them, and without a filter."""
    rules = configuration.get("Filter", {}).get("Key", {}).get("FilterRules", [])
    return _CREATED in configuration["Events"] and not rules
