"""Whatever is killed or cut off between an upload and its publication, each accepted row is published exactly once."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from busco.aws import client
from busco.embedded import airflow, processes
from busco.errors import BuscoError
from busco.events.queue import Counts
from busco.orchestration.events import events_queue
from busco.settings import get_settings
from tests import warm
from tests.airflow.driver import DAG, ROOT, Driver, platform
from tests.airflow.test_events import HEADER, runs, settled

pytestmark = pytest.mark.long
SOAK = float(os.environ.get("BUSCO_SOAK_SECONDS", "600"))
KILL_EVERY = 30.0  # seconds


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    """A platform that listens, whose lake is empty."""
    home = tmp_path_factory.mktemp("faults")
    with platform(home, ROOT / "tests/projects/mini/dbt_project", None, BUSCO_LISTEN="true") as made:
        made.busco("dbt", "parse")
        made.api.wait_for_dag(DAG)
        yield made


class World:
    """Uploads files of orders, and knows the amount that each order must have in the end.

    An order is only in one file; if a file is corrected, its newest version counts.
    """

    def __init__(self, driver: Driver) -> None:
        self.driver, self.s3, self.sqs = driver, client("s3", get_settings()), client("sqs", get_settings())
        self.bucket = get_settings().landing_bucket
        self.expected: dict[str, str] = {}
        self.poison = 0
        self.number = 0
        self.files: dict[str, bytes] = {}

    def put(self, *, bad: bool = False) -> None:
        """Uploads a new file with up to five orders; with `bad`, one of its rows must be quarantined."""
        self.number += 1
        orders = {f"{self.number}-{n}": f"{random.randint(1, 99)}.00" for n in range(random.randint(1, 5))}
        self._write(f"orders/day {self.number % 7}/é+{self.number}.csv", orders, "bad,x,much,2018-01-01,1\n" * bad)

    def correct(self) -> None:
        """Overwrites an earlier file with other amounts."""
        if self.files:
            key = random.choice(list(self.files))
            ids = [line.split(",")[0] for line in self.files[key].decode().splitlines()[1:] if line[0] != "b"]
            self._write(key, {one: f"{random.randint(100, 999)}.00" for one in ids})

    def again(self) -> None:
        """Uploads an earlier file unchanged."""
        if self.files:
            key = random.choice(list(self.files))
            self._upload(key, self.files[key])

    def hostile(self) -> None:
        """Uploads what must be refused, or sends a message that must become a dead letter."""
        what = random.randint(0, 4)
        if what == 0:
            self._upload(f"orders/empty {self.number}.csv", b"")
        elif what == 1:
            self._upload(f"orders/other {self.number}.csv", b"a,b\n1,2\n")
        elif what == 2:
            self._upload(f"nowhere/{self.number}.csv", HEADER.encode())
        elif what == 3:
            self._upload(f"orders/{self.number}/", b"")
        else:
            self.poison += 1
            event = {"eventVersion": "2.1", "eventSource": "aws:s3", "eventName": "ObjectCreated:Put"}
            event |= {"s3": {"bucket": {"name": "another"}, "object": {"key": "a", "size": 1, "eTag": "e"}}}
            self._retried(
                lambda: self.sqs.send_message(
                    QueueUrl=get_settings().events_queue, MessageBody=json.dumps({"Records": [event]})
                )
            )

    def step(self) -> None:
        """Does one of these things at random."""
        random.choice(
            [self.put, self.put, self.put, lambda: self.put(bad=True), self.correct, self.again, self.hostile]
        )()

    def _write(self, key: str, orders: dict[str, str], more: str = "") -> None:
        lines = "".join(f"{order},x,{amount},2018-01-01,1\n" for order, amount in orders.items())
        self.files[key] = (HEADER + lines + more).encode()
        self._upload(key, self.files[key])
        self.expected |= orders

    def _upload(self, key: str, body: bytes) -> None:
        self._retried(lambda: self.s3.put_object(Bucket=self.bucket, Key=key, Body=body))

    @staticmethod
    def _retried(call: Callable[[], Any]) -> None:
        for attempt in range(60):
            try:
                call()
            except Exception:
                if attempt == 59:
                    raise
                time.sleep(1)
            else:
                return

    def query(self, sql: str) -> list[str]:
        command = ("-m", "busco", "query", "--format", "csv", sql)
        done = warm.run(*command, cwd=self.driver.home, environment=os.environ)
        # until Glue shows the first release, there is no table
        return done.stdout.splitlines()[1:] if done.returncode == 0 else []

    def is_published(self) -> bool:
        if self.counts()[:2] != (0, 0):
            return False
        found = dict(line.split(",") for line in self.query("select id, amount from busco_silver.orders"))
        return found == self.expected

    def counts(self) -> tuple[int, int, int]:
        found: Counts = events_queue(get_settings()).counts()
        return found.waiting, found.in_flight, found.dead_letters

    def check(self, limit: float = 300) -> None:
        """Waits until everything is published, and compares gold with the files."""
        self.driver.wait(self.is_published, limit)
        settled(self.driver)
        ids = self.query("select id from busco_gold.fct cross join unnest(ids) as t(id)")
        assert Counter(ids) == Counter(list(self.expected))
        assert self.counts() == (0, 0, self.poison)


@pytest.fixture(scope="module")
def world(driver: Driver) -> World:
    made = World(driver)
    made.put()
    made.check()
    return made


def own_processes(home: Path, *words: str) -> list[psutil.Process]:
    """Returns the processes of a platform whose command line has the words."""
    found = []
    for one in psutil.process_iter():
        try:
            line = one.cmdline()
            if all(word in line for word in words) and one.environ().get("BUSCO_HOME") == str(home):
                found.append(one)
        except psutil.Error:
            continue
    return found


def kill(driver: Driver, what: str) -> bool:
    """Kills a part of the platform with SIGKILL; returns whether there was one."""
    if what in ("ingest", "runner"):
        found = own_processes(driver.home, "busco", what)
        for one in found:
            one.kill()
        return bool(found)
    process = processes.find(get_settings().state, what)
    if process is None:
        return False
    os.kill(process.pid, signal.SIGKILL)
    return True


def start_again() -> None:
    """Starts what isn't running, as `busco ui` does; a second time if the first one fails, as its user would."""
    try:
        airflow.up(get_settings(), lambda _: None)
    except BuscoError as error:
        print(f"the first start failed: {error}")
        airflow.up(get_settings(), lambda _: None)


PARTS = [airflow.EVENTS, *airflow.SERVICES, airflow.POSTGRES, "ingest", "runner"]


@pytest.mark.parametrize("what", PARTS)
def test_a_part_that_is_killed_while_an_upload_is_processed_loses_and_repeats_nothing(
    driver: Driver, world: World, what: str
) -> None:
    for _ in range(3):
        world.put()
    driver.wait(lambda: kill(driver, what), 60)
    world.put()
    start_again()
    if what == airflow.POSTGRES:
        # Airflow's services notice only after a while that the database was gone, and end; in production, Docker
        # restarts them
        time.sleep(20)
        start_again()
    world.check()


def test_the_queue_of_a_local_aws_that_is_killed_is_made_up_for(driver: Driver, world: World) -> None:
    assert kill(driver, airflow.EVENTS)
    world.put()
    assert kill(driver, "aws")
    driver.busco("aws", "up")
    world.poison = 0  # the dead letters are lost with the queue
    start_again()
    world.check()


def test_s3_and_the_queue_can_be_out_of_reach_for_a_minute(driver: Driver, world: World) -> None:
    process = processes.find(get_settings().state, "aws")
    assert process is not None
    world.put()
    os.kill(process.pid, signal.SIGSTOP)
    try:
        time.sleep(60)
    finally:
        os.kill(process.pid, signal.SIGCONT)
    world.put()
    world.check()


def test_two_services_at_once_ingest_each_object_once(driver: Driver, world: World) -> None:
    settled(driver)
    before, deliveries = len(runs(driver)), len(list(driver.store.keys("_lake/deliveries/")))
    second = subprocess.Popen(
        [sys.executable, "-m", "busco", "events", "listen"],
        env=airflow.environment(get_settings()),
        cwd=driver.home,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(30):
            world.put()
            time.sleep(0.2)
        world.check()
    finally:
        second.terminate()
        assert second.wait(60) == 0
    assert len(list(driver.store.keys("_lake/deliveries/"))) == deliveries + 30
    assert len(runs(driver)) <= before + 4


# signs requests an hour late; AWS and the local AWS accept 15 minutes
SLOW_CLOCK = """
import sys
from datetime import timedelta

import botocore.auth

now = botocore.auth.get_current_datetime
botocore.auth.get_current_datetime = lambda *given: now(*given) - timedelta(hours=1)
from busco.cli.main import main

sys.argv = ["busco", "events", "listen"]
main()
"""


def test_a_service_whose_clock_is_an_hour_off_says_so_and_loses_nothing(driver: Driver, world: World) -> None:
    settled(driver)
    processes.stop(get_settings().state, airflow.EVENTS)
    wrong = subprocess.Popen(
        [sys.executable, "-c", SLOW_CLOCK],
        env=airflow.environment(get_settings()),
        cwd=driver.home,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    before = len(list(driver.store.keys("_lake/deliveries/")))
    try:
        world.put()
        time.sleep(20)
    finally:
        wrong.terminate()
        printed, _ = wrong.communicate(timeout=60)
    print(printed)
    assert re.search("RequestTimeTooSkewed|SignatureDoesNotMatch|Signature expired", printed)
    assert len(list(driver.store.keys("_lake/deliveries/"))) == before
    start_again()
    world.check()


@pytest.mark.timeout(SOAK + 1200)
def test_ten_minutes_of_uploads_during_which_a_part_is_killed_every_thirty_seconds(
    driver: Driver, world: World
) -> None:
    random.seed(int(os.environ.get("BUSCO_SOAK_SEED", "1")))
    began = time.monotonic()
    kill_at = began + KILL_EVERY
    killed: Counter[str] = Counter()
    while time.monotonic() < began + SOAK:
        world.step()
        time.sleep(random.uniform(0.1, 1.5))
        if time.monotonic() >= kill_at:
            kill_at += KILL_EVERY
            what = random.choice(PARTS)
            killed[what] += kill(driver, what)
            start_again()
    print(f"{world.number} files, {len(world.expected)} orders, {world.poison} poison messages, killed {dict(killed)}")
    start_again()
    world.check(600)
