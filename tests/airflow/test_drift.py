"""The `drift` DAG: what its tasks log and raise, and the alert."""

from __future__ import annotations

import logging
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.exceptions import AirflowException, AirflowFailException, AirflowSkipException
from airflow.models import DagBag
from botocore.exceptions import ClientError

from busco.lake.objects import ObjectStore
from busco.orchestration import alerts, control
from busco.settings import Settings
from tests.platforms import ROOT
from tests.unit import wide_lake
from tests.unit.memory_glue import MemoryGlue
from tests.unit.memory_s3 import MemoryS3


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    s3, glue = MemoryS3(), MemoryGlue()

    def as_publisher(service: str, *_: Any, **__: Any) -> Any:
        return s3 if service == "s3" else glue

    monkeypatch.setattr(control, "get_settings", lambda: Settings(home=ROOT, lake_bucket="lake"))
    monkeypatch.setattr(control, "publisher_client", as_publisher)
    return ObjectStore(s3, "lake")


def test_nothing_is_compared_before_the_first_release(store: ObjectStore) -> None:
    for task in (control.check, lambda: control.repair_drift("ana")):
        with pytest.raises(AirflowSkipException):
            task()


def test_a_check_names_what_differs_and_how_it_is_repaired(
    store: ObjectStore, caplog: pytest.LogCaptureFixture
) -> None:
    release = wide_lake.publish(store, {f"gold.t{number}": "v1" for number in range(30)})
    with caplog.at_level(logging.INFO), pytest.raises(AirflowException) as found:
        control.check()
    assert not isinstance(found.value, AirflowFailException), "the task must be tried again"
    lines = str(found.value).splitlines()
    # in this lake, no metadata is readable and nothing is shown in Glue
    assert lines[0] == f"60 differences found; {control.REPAIR}"
    assert len(lines) == 1 + 20 + 1
    assert lines[-1] == "and 40 more"
    logged = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(logged) == 60
    shown = store.url(release.tables["gold.t7"].metadata)
    assert f"gold.t7: the Glue table busco_gold.t7 is missing\n  expected: metadata {shown}; by: " in "\n".join(logged)


def test_a_repair_fails_if_differences_are_left(store: ObjectStore, caplog: pytest.LogCaptureFixture) -> None:
    wide_lake.publish(store, {"gold.t": "v1"})
    with caplog.at_level(logging.INFO), pytest.raises(AirflowFailException, match="1 difference left; the log states"):
        control.repair_drift("ana")
    logged = "\n".join(record.getMessage() for record in caplog.records)
    assert "gold.t: the Glue table busco_gold.t is missing\n  corrected in Glue" in logged


def test_the_alert_says_what_was_found_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[dict[str, Any]] = []
    monkeypatch.setattr(alerts, "client", lambda *_: SimpleNamespace(publish=lambda **message: sent.append(message)))
    settings = Settings(home=ROOT, alerts_topic="arn:topic", airflow_url="https://airflow.example.com/")
    monkeypatch.setattr(alerts, "get_settings", lambda: settings)
    context = {
        "dag_run": SimpleNamespace(dag_id="drift", run_id="scheduled__1"),
        "task_instance": SimpleNamespace(task_id="compare"),
        "exception": AirflowException(f"1 difference found; {control.REPAIR}\ngold.t: was\x1b[31m deleted"),
    }
    alerts.failed_check(context)
    (alert,) = sent
    assert (alert["TopicArn"], alert["Subject"]) == ("arn:topic", "drift failed: compare")
    assert alert["Message"].splitlines() == [
        "compare of DAG run drift / scheduled__1 has failed.",
        "",
        f"1 difference found; {control.REPAIR}",
        "gold.t: was\\x1b[31m deleted",
        "",
        "https://airflow.example.com/dags/drift/grid",
    ]


def test_an_alert_that_can_not_be_sent_does_not_raise(caplog: pytest.LogCaptureFixture) -> None:
    alerts.failed_check({})
    assert "the alert could not be sent" in caplog.text


@pytest.mark.parametrize("execution", ["local", "ecs", "ecs_shared"])
def test_a_check_is_tried_three_times_before_it_alerts(execution: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from busco.settings import get_settings

    monkeypatch.setenv("BUSCO_EXECUTION", execution)
    get_settings.cache_clear()
    try:
        dag = DagBag(str(ROOT / "dags/drift.py"), include_examples=False, read_dags_from_db=False).dags["drift"]
    finally:
        get_settings.cache_clear()
    assert dag.schedule_interval == "0 5 * * *"
    called: list[Any] = []
    monkeypatch.setattr(alerts, "failed_check", called.append)
    for task in dag.tasks:
        assert (task.retries, task.retry_delay) == (2, timedelta(minutes=5))
        task.on_failure_callback({"a": task.task_id})
        # differences in the lake don't keep the notification from being checked, nor the other way around
        assert not task.upstream_task_ids
    assert called == [{"a": "compare"}, {"a": "notification"}]


# -- the landing bucket's notification --------------------------------------------------------------------------------

QUEUE = "arn:aws:sqs:us-east-1:000000000000:busco-events"
TOLD = {"QueueConfigurations": [{"QueueArn": QUEUE, "Events": ["s3:ObjectCreated:*"]}]}


def told(monkeypatch: pytest.MonkeyPatch, answer: dict[str, Any] | ClientError, **settings: str) -> None:
    """Lets the task see a landing bucket with this configuration, or this error."""

    def notification(Bucket: str) -> dict[str, Any]:
        assert Bucket == "landing"
        if isinstance(answer, ClientError):
            raise answer
        return answer

    clients = {
        "s3": SimpleNamespace(get_bucket_notification_configuration=notification),
        "sqs": SimpleNamespace(
            get_queue_attributes=lambda **_: {"Attributes": {"QueueArn": QUEUE}},
            exceptions=SimpleNamespace(QueueDoesNotExist=KeyError),
        ),
    }
    names = {"events_queue": "url", "events_dead_letters": "dead", "landing_bucket": "landing"}
    monkeypatch.setattr(control, "get_settings", lambda: Settings(home=ROOT, **{**names, **settings}))
    monkeypatch.setattr(control, "client", lambda service, *_: clients[service])


def test_a_notification_of_all_new_objects_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    told(monkeypatch, TOLD)
    with caplog.at_level(logging.INFO):
        control.check_notification()
    assert f"s3://landing notifies {QUEUE} of all new objects" in caplog.text


@pytest.mark.parametrize(
    "answer", [{}, {"QueueConfigurations": [{**TOLD["QueueConfigurations"][0], "Events": ["s3:ObjectCreated:Put"]}]}]
)
def test_a_notification_that_was_removed_or_replaced_is_an_alert_with_the_command(
    monkeypatch: pytest.MonkeyPatch, answer: dict[str, Any]
) -> None:
    told(monkeypatch, answer)
    # it does not come back by itself, so the task is not tried again
    with pytest.raises(AirflowFailException) as found:
        control.check_notification()
    message = str(found.value)
    assert message.startswith(f"s3://landing does not notify {QUEUE} of all new objects; it notifies ")
    assert f"busco events attach {QUEUE}" in message


def test_a_role_that_may_not_see_the_notification_is_an_alert_and_an_outage_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told(monkeypatch, ClientError({"Error": {"Code": "AccessDenied"}}, "GetBucketNotificationConfiguration"))
    with pytest.raises(AirflowFailException, match="EventsPolicy in deploy/aws/events.yaml"):
        control.check_notification()
    told(monkeypatch, ClientError({"Error": {"Code": "InternalError"}}, "GetBucketNotificationConfiguration"))
    with pytest.raises(ClientError):
        control.check_notification()


def test_without_a_queue_there_is_no_notification_to_check(monkeypatch: pytest.MonkeyPatch) -> None:
    told(monkeypatch, {}, events_queue="")
    with pytest.raises(AirflowSkipException, match="BUSCO_EVENTS_QUEUE is not set"):
        control.check_notification()
    told(monkeypatch, {}, landing_bucket="")
    with pytest.raises(AirflowFailException, match="BUSCO_LANDING_BUCKET is not set"):
        control.check_notification()
