"""S3's event notifications in all forms in which they reach a queue."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from busco.events.notifications import Notification, read
from busco.lake.records import Arrival

BUCKET = "landing"


def record(key: str = "orders/a.csv", name: str = "ObjectCreated:Put", **changes: Any) -> dict[str, Any]:
    item = {
        "key": quote_plus(key, safe="/"),
        "size": 10,
        "eTag": "0123",
        "versionId": "v1",
        "sequencer": "0055AED6DCD90281E5",
    }
    if not name.startswith(("ObjectCreated", "s3:ObjectCreated")):
        del item["size"], item["eTag"]
    return {
        "eventVersion": "2.1", "eventSource": "aws:s3", "awsRegion": "us-east-1",
        "eventTime": "2026-01-01T00:00:00.000Z",
        "eventName": name,
        "s3": {"s3SchemaVersion": "1.0", "bucket": {"name": BUCKET, "arn": f"arn:aws:s3:::{BUCKET}"}, "object": item},
        **changes,
    }  # fmt: skip


def raw(*records: dict[str, Any]) -> str:
    return json.dumps({"Records": list(records)})


def by_sns(body: str) -> str:
    return json.dumps(
        {"Type": "Notification", "MessageId": "1", "TopicArn": "arn:aws:sns:us-east-1:1:t", "Message": body}
    )


def by_eventbridge(key: str = "orders/a.csv", kind: str = "Object Created") -> str:
    item = {"key": key, "size": 10, "etag": "0123", "version-id": "v1", "sequencer": "0055AED6DCD90281E5"}
    if kind == "Object Deleted":
        del item["size"], item["etag"]
    detail = {"version": "0", "bucket": {"name": BUCKET}, "object": item, "reason": "PutObject"}
    return json.dumps({"version": "0", "id": "1", "detail-type": kind, "source": "aws.s3", "detail": detail})


def only(found: Notification) -> Arrival:
    assert not found.foreign
    (arrival,) = found.arrivals
    return arrival


@pytest.mark.parametrize(
    "key",
    ["orders/a.csv", "orders/with space.csv", "orders/a+b.csv", "orders/100%.csv", "orders/%41.csv",
     "orders/ação ☃ 😀.csv",
     "orders/day=2026-01-01/a.csv", "orders/../a.csv", "orders/" + "x" * 1000, "orders/new\nline.csv"],
)  # fmt: skip
def test_all_forms_give_the_same_event_and_decode_the_key_once(key: str) -> None:
    expected = Arrival(key=key, version="v1", etag="0123", size=10)
    for body in (raw(record(key)), by_sns(raw(record(key))), by_eventbridge(key)):
        assert only(read(body, BUCKET)) == expected


@given(st.text(min_size=1).filter(lambda text: text.isprintable()))
def test_any_key_is_decoded_as_s3_encodes_it(key: str) -> None:
    assert only(read(raw(record(key)), BUCKET)).key == key
    assert only(read(by_eventbridge(key), BUCKET)).key == key


@pytest.mark.parametrize(
    "name",
    ["ObjectCreated:Put", "ObjectCreated:Post", "ObjectCreated:Copy", "ObjectCreated:CompleteMultipartUpload",
     "s3:ObjectCreated:Put"],
)  # fmt: skip
def test_each_way_to_create_an_object_counts(name: str) -> None:
    assert only(read(raw(record(name=name)), BUCKET))


@pytest.mark.parametrize(
    "name",
    ["ObjectRemoved:Delete", "ObjectRemoved:DeleteMarkerCreated", "LifecycleExpiration:Delete",
     "LifecycleExpiration:DeleteMarkerCreated"],
)  # fmt: skip
def test_removed_objects_need_nothing(name: str) -> None:
    assert read(raw(record(name=name)), BUCKET) == Notification()
    assert read(by_eventbridge(kind="Object Deleted"), BUCKET) == Notification()


def test_events_that_change_no_content_and_the_test_event_need_nothing() -> None:
    test = json.dumps({"Service": "Amazon S3", "Event": "s3:TestEvent", "Time": "2026", "Bucket": BUCKET})
    for body in (test, by_sns(test), raw(record(name="ObjectTagging:Put")), raw(record(name="ObjectRestore:Completed")),
                 by_eventbridge(kind="Object Tags Added"), raw()):  # fmt: skip
        message = read(body, BUCKET)
        assert (message.arrivals, message.foreign) == ((), ())


@pytest.mark.parametrize("version", ["2.0", "2.1", "2.5", "2.99"])
def test_any_version_with_the_same_major_number_is_read(version: str) -> None:
    assert only(read(raw(record(eventVersion=version)), BUCKET))


@pytest.mark.parametrize(
    "body",
    ["", "not JSON", "null", "[]", '"text"', "{}", '{"Records": 1}', '{"Records": [1]}', '{"Records": [{}]}',
     by_sns("not JSON"), by_sns(by_sns(raw(record()))), json.dumps({"Type": "SubscriptionConfirmation"}),
     raw(record(eventVersion="3.0")), raw(record(eventSource="aws:sqs")), raw(record(s3={})),
     json.dumps({"source": "aws.s3", "detail-type": "Object Created", "detail": {}}),
     raw(record()).replace("orders/a.csv", "orders/%FF.csv"),
     by_eventbridge("orders/x.csv").replace("orders/x.csv", "orders/\\ud800.csv"), "[" * 100_000,
     raw(record()).replace('"size": 10', '"size": 1e400'), raw(record()).replace('"size": 10', '"size": "x"')],
)  # fmt: skip
def test_what_is_no_notification_is_foreign_with_a_reason(body: str) -> None:
    message = read(body, BUCKET)
    assert message.arrivals == ()
    assert all(reason.strip() for reason in message.foreign)
    assert message.foreign


def test_another_bucket_s_event_is_foreign_and_named() -> None:
    message = read(raw(record()), "another")
    assert message.foreign == ("it is about the bucket landing",)


def test_one_bad_record_does_not_affect_its_neighbours() -> None:
    message = read(raw(record("orders/1.csv"), {"eventName": 3}, record("orders/3.csv")), BUCKET)
    assert [one.key for one in message.arrivals] == ["orders/1.csv", "orders/3.csv"]
    assert len(message.foreign) == 1


def test_an_impossible_size_does_not_affect_the_neighbours_of_its_record() -> None:
    body = raw(record("orders/1.csv"), record("orders/2.csv"), record("orders/3.csv"))
    message = read(body.replace('"orders/2.csv", "size": 10', '"orders/2.csv", "size": 1e400'), BUCKET)
    assert [one.key for one in message.arrivals] == ["orders/1.csv", "orders/3.csv"]
    assert len(message.foreign) == 1
    (reason,) = read(by_eventbridge().replace('"size": 10', '"size": 1e400'), BUCKET).foreign
    assert "a field of the S3 event is missing or invalid" in reason


def test_the_reasons_fit_into_a_message_and_can_be_printed() -> None:
    many = [record(**{"eventVersion": f"3.{number}", "eventSource": "\u0001" * 1000}) for number in range(2000)]
    odd = [json.loads(json.dumps(record()).replace(BUCKET, f"bucket-{number}-\\u0001")) for number in range(2000)]
    message = read(raw(*many, *odd), BUCKET)
    assert "and 1,996 more reasons" in message.foreign
    text = "; ".join(message.foreign)
    assert text.isprintable()
    assert len(text) < 2000
