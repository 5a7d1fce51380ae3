"""An object in the landing bucket starts the pipeline, whatever happens to messages, dataset events and processes."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from busco.aws import client
from busco.embedded import airflow, processes
from busco.lake.records import Release
from busco.settings import get_settings
from tests import warm
from tests.airflow.driver import DAG, ROOT, Driver, platform

HEADER = "id,customer,amount,day,n\n"


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    """A platform that listens, whose lake is empty."""
    home = tmp_path_factory.mktemp("events")
    with platform(home, ROOT / "tests/projects/mini/dbt_project", None, BUSCO_LISTEN="true") as made:
        made.busco("dbt", "parse")
        made.api.wait_for_dag(DAG)
        yield made


class Producer:
    """Uploads files, and knows which rows gold must have in the end."""

    def __init__(self, driver: Driver) -> None:
        self.driver, self.s3 = driver, client("s3", get_settings())

    def put(self, name: str, *rows: tuple[str, str]) -> None:
        """Uploads a file of orders; each row is an id and an amount."""
        body = HEADER + "".join(f"{order},x,{amount},2018-01-01,1\n" for order, amount in rows)
        self.s3.put_object(Bucket=get_settings().landing_bucket, Key=f"orders/{name}", Body=body.encode())

    def shown(self) -> dict[str, str]:
        """Returns the amount of each order in the live release, as Athena shows it."""
        sql = "select id, amount from busco_silver.orders order by id"
        done = warm.run("-m", "busco", "query", "--format", "csv", sql, cwd=self.driver.home, environment=os.environ)
        # until Glue shows the first release, there is no table
        return dict(line.split(",") for line in done.stdout.splitlines()[1:]) if done.returncode == 0 else {}

    def wait_for(self, expected: dict[str, str], limit: float = 120) -> None:
        self.driver.wait(lambda: self.driver.live() is not None, limit)
        self.driver.wait(lambda: self.has(expected), limit)

    def has(self, expected: dict[str, str]) -> bool:
        live = self.driver.live()
        return live is not None and rows_of(live) >= len(expected) and expected.items() <= self.shown().items()


def rows_of(release: Release) -> int:
    return release.tables["silver.orders"].rows if "silver.orders" in release.tables else 0


@pytest.fixture
def producer(driver: Driver) -> Producer:
    return Producer(driver)


def runs(driver: Driver) -> list[dict[str, Any]]:
    """Returns the DAG's runs, oldest first."""
    return driver.api.dag_runs(DAG)


def settled(driver: Driver) -> None:
    """Waits until no run is active."""
    driver.wait(lambda: all(run["state"] in ("success", "failed") for run in runs(driver)), 120)


def test_uploading_a_file_is_enough_to_show_its_rows(driver: Driver, producer: Producer) -> None:
    producer.put("first.csv", ("a", "1.00"), ("b", "2.00"))
    producer.wait_for({"a": "1.00", "b": "2.00"})
    (run,) = runs(driver)
    assert run["run_type"] == "dataset_triggered"
    (event,) = driver.api.call("GET", f"dags/{DAG}/dagRuns/{run['dag_run_id']}/upstreamDatasetEvents")["dataset_events"]
    assert event["dataset_uri"] == "busco://lake/bronze/orders"
    assert (event["extra"]["deliveries"], event["extra"]["rows"]) == (1, 2)
    assert event["extra"]["objects"][0]["key"] == "orders/first.csv"


@pytest.mark.slow
def test_a_dataset_event_without_new_deliveries_builds_nothing_unless_its_run_is_cleared(
    driver: Driver, producer: Producer
) -> None:
    settled(driver)
    before, live = len(runs(driver)), driver.live()
    assert live is not None
    driver.api.call("POST", "datasets/events", {"dataset_uri": "busco://lake/bronze/orders"})
    driver.wait(lambda: len(runs(driver)) > before, 60)
    settled(driver)
    (run,) = runs(driver)[before:]
    states = driver.states(run["dag_run_id"])
    assert (run["state"], states.pop("pin"), set(states.values())) == ("success", "success", {"skipped"})
    assert "nothing to do: all deliveries are published" in driver.log(run["dag_run_id"], "pin")
    assert driver.live() == live
    driver.api.clear(DAG, run["dag_run_id"], ["pin"], downstream=True)
    driver.wait(lambda: "publish" in driver.states(run["dag_run_id"]), 30)
    driver.green(run["dag_run_id"])
    assert set(driver.states(run["dag_run_id"]).values()) == {"success"}


@pytest.mark.slow
def test_files_that_arrive_while_the_dag_is_paused_are_published_once_it_is_unpaused(
    driver: Driver, producer: Producer
) -> None:
    settled(driver)
    before = len(runs(driver))
    driver.api.call("PATCH", f"dags/{DAG}", {"is_paused": True})
    for number in range(5):
        producer.put(f"paused-{number}.csv", (f"p{number}", "3.00"))
    driver.wait(lambda: len(list(driver.store.keys("_lake/deliveries/"))) >= 6, 60)
    status = driver.busco("events", "status")
    assert (
        "a run will start soon, unless the DAG is paused (5 unpublished deliveries of bronze.orders, the oldest "
        in status
    )
    driver.api.call("PATCH", f"dags/{DAG}", {"is_paused": False})
    producer.wait_for({f"p{number}": "3.00" for number in range(5)})
    settled(driver)
    assert len(runs(driver)) == before + 1


@pytest.mark.slow
def test_many_files_at_once_and_during_a_run_are_published_in_few_runs(driver: Driver, producer: Producer) -> None:
    settled(driver)
    before = len(runs(driver))
    for number in range(30):
        producer.put(f"many-{number}.csv", (f"m{number}", "4.00"))
    driver.wait(lambda: len(runs(driver)) > before, 60)
    for number in range(30, 50):
        producer.put(f"many-{number}.csv", (f"m{number}", "4.00"))
    producer.wait_for({f"m{number}": "4.00" for number in range(50)})
    settled(driver)
    assert len(runs(driver)) <= before + 3


def test_a_file_that_arrives_while_the_service_is_down_is_published_when_it_is_back(
    driver: Driver, producer: Producer
) -> None:
    process = processes.find(get_settings().state, airflow.EVENTS)
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    producer.put("while-dead.csv", ("d", "5.00"))
    status = driver.busco("events", "status")
    # the killed service's last request may have received it
    assert "1 message waiting, 0 being processed" in status or "0 messages waiting, 1 being processed" in status
    airflow.up(get_settings(), lambda _: None)
    producer.wait_for({"d": "5.00"})


@pytest.mark.slow
def test_files_that_arrive_during_a_hold_are_published_after_it(driver: Driver, producer: Producer) -> None:
    first = driver.live()
    assert first is not None
    producer.put("before the hold.csv", ("h", "1.00"))
    producer.wait_for({"h": "1.00"})
    settled(driver)
    driver.busco("release", "rollback", first.release, "--reason", "to look at it first")
    before = len(runs(driver))
    for number in range(50):
        producer.put(f"held-{number}.csv", (f"h{number}", "2.00"))
    driver.wait(lambda: len(runs(driver)) > before, 60)
    driver.wait(lambda: "publishing is on hold" in driver.busco("events", "status"), 120)
    settled(driver)
    held = len(runs(driver))
    # longer than the service waits before it starts a run that is missing
    time.sleep(25)
    assert len(runs(driver)) == held
    driver.busco("release", "resume")
    producer.wait_for({"h": "1.00", **{f"h{number}": "2.00" for number in range(50)}})
    settled(driver)


@pytest.mark.slow
def test_put_uploads_a_file_and_waits_until_its_rows_are_published(
    driver: Driver, producer: Producer, tmp_path: Path
) -> None:
    settled(driver)
    (tmp_path / "orders-new.csv").write_text(HEADER + "put,x,1.50,2018-01-01,1\nbad,x,much,2018-01-01,1\n")
    (tmp_path / "other.csv").write_text("id\n1\n")
    command = ["-m", "busco", "put", str(tmp_path)]
    done = warm.run(*command, cwd=driver.home, environment=os.environ)
    assert done.returncode == 1, done.stderr
    assert re.search(r"orders-new\.csv +orders +ingested +2 +1 +1\n", done.stdout)
    assert re.search(r"refused: \S+/other\.csv: its name matches no table", done.stderr)
    live = driver.live()
    assert live is not None
    assert f"published in release {live.release}" in done.stderr
    # Athena follows with the task `glue`
    producer.wait_for({"put": "1.50"})
    # the same file again: nothing new is ingested, and no run starts
    (tmp_path / "other.csv").unlink()
    settled(driver)
    before = len(runs(driver))
    done = warm.run(*command, cwd=driver.home, environment=os.environ)
    assert done.returncode == 0, done.stderr
    assert re.search(r"orders-new\.csv +orders +already ingested +2 +1 +1\n", done.stdout)
    # longer than the service waits before it starts a run that is missing
    time.sleep(15)
    assert len(runs(driver)) == before


@pytest.mark.slow
def test_while_the_service_is_paused_new_objects_wait(driver: Driver, producer: Producer) -> None:
    settled(driver)
    assert "paused" in driver.busco("events", "pause", "--reason", "maintenance of the lake")
    # the service may be waiting for messages at this moment
    time.sleep(8)
    try:
        producer.put("while-paused.csv", ("w", "7.00"))
        time.sleep(5)
        status = driver.busco("events", "status")
        assert "maintenance of the lake; to continue: busco events resume" in status
        assert re.search(r"[1-9]\d* messages? waiting", status)
    finally:
        assert "it was paused by" in driver.busco("events", "resume")
    producer.wait_for({"w": "7.00"})


@pytest.mark.slow
def test_an_object_whose_event_was_lost_is_found_by_reconcile(driver: Driver, producer: Producer) -> None:
    settled(driver)
    bucket = get_settings().landing_bucket
    kept = producer.s3.get_bucket_notification_configuration(Bucket=bucket)
    kept.pop("ResponseMetadata")
    producer.s3.put_bucket_notification_configuration(Bucket=bucket, NotificationConfiguration={})
    producer.put("lost.csv", ("l", "8.00"))
    assert "ingested: orders/lost.csv" in driver.busco("events", "reconcile")
    producer.put("lost-too.csv", ("l2", "9.00"))
    run = driver.start("landing", action="reconcile")
    driver.green(run, "landing")
    assert "ingested: orders/lost-too.csv" in driver.log(run, "work", "landing")
    producer.s3.put_bucket_notification_configuration(Bucket=bucket, NotificationConfiguration=kept)
    producer.wait_for({"l": "8.00", "l2": "9.00"})
    driver.green(driver.start("landing", action="replay_dead_letters"), "landing")


def test_refused_objects_and_foreign_messages_are_shown_with_their_reasons(driver: Driver, producer: Producer) -> None:
    settings = get_settings()
    sqs = client("sqs", settings)
    sqs.send_message(QueueUrl=settings.events_queue, MessageBody="not a notification")
    for key in ("nowhere/b.csv", "nowhere/a.csv"):
        producer.s3.put_object(Bucket=settings.landing_bucket, Key=key, Body=b"id\n1\n")

    def shown() -> bool:
        status = driver.busco("events", "status")
        return "refused nowhere/a.csv: its folder belongs to no table" in status and "1 dead letter" in status

    driver.wait(shown, 60)
    listed = driver.busco("events", "dead-letters", "list")
    assert "it is not JSON" in listed
    page = driver.api.session.get(f"{driver.api.base}/busco/events", timeout=60)
    assert page.status_code == 200
    assert "nowhere/a.csv: its folder belongs to no table" in page.text
    assert "1 dead letter" in page.text
    assert re.search(
        r"[1-9]\d* objects in the last hour \(\d\.\d a minute\), [1-9]\d* refused; \d+ rows? quarantined", page.text
    )
    measured = dict(line.split()[:2] for line in driver.busco("metrics", "show").splitlines())
    assert (measured["DeadLetters"], measured["UnpublishedAge"], measured["ImportErrors"]) == ("1", "0", "0")
    assert {
        "SchedulerSilence",
        "TriggererSilence",
        "ReleaseAge",
        "ReleaseRows",
        "DeliveryAge",
        "DiskUsed",
    } <= measured.keys()
    assert "1 message sent to the queue again" in driver.busco("events", "dead-letters", "replay", "--all")
    # its cause is not fixed
    driver.wait(lambda: "it is not JSON" in driver.busco("events", "dead-letters", "list"), 60)


@pytest.mark.slow
def test_a_set_whose_run_failed_starts_nothing_until_something_is_new(driver: Driver, producer: Producer) -> None:
    settled(driver)
    before = len(runs(driver))
    model = "dbt_project/models/silver/orders.sql"
    good = driver.write(model, "select error('broken') as id, 1 as amount from {{ source('bronze','orders') }}")
    driver.busco("dbt", "parse")
    producer.put("broken.csv", ("x", "6.00"))
    driver.wait(lambda: [run["state"] for run in runs(driver)[before:]] == ["failed"], 120)
    # longer than the service waits before it starts a run that is missing
    time.sleep(25)
    (run,) = runs(driver)[before:]
    status = driver.busco("events", "status")
    assert f"blocked by run {run['dag_run_id']}" in status
    found = re.search(r"\(1 unpublished delivery of bronze\.orders, the oldest from (\S+ \S+) UTC\)", status)
    assert found
    age = datetime.now(UTC) - datetime.fromisoformat(f"{found[1]}+00:00")
    assert timedelta(seconds=20) < age < timedelta(minutes=5)
    driver.write(model, good)
    driver.busco("dbt", "parse")
    producer.wait_for({"x": "6.00"})
    settled(driver)
    assert len(runs(driver)) == before + 2
