"""Measures the platform, and sends the values to CloudWatch (`busco metrics serve`), for the alarms and the dashboard.

Each measurement has four parts, which are sent one after the other: Airflow (its database), the lake, the queue of new
objects, and the machine. If one of them can't be measured, its metrics are missing, and the others are sent. For each
alarm, `deploy/aws/airflow.yaml` says what missing data means.

All metrics are in the namespace `Busco`, and have one dimension, `Platform`, the template's `Name`.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

import psutil
from botocore.exceptions import BotoCoreError, ClientError
from cryptography import x509

from busco.aws import client
from busco.errors import BuscoError
from busco.events import pending
from busco.events.queue import Queue
from busco.lake.layout import EnvironmentLayout, RunLayout, delivery_prefix
from busco.lake.objects import ObjectStore
from busco.lake.records import Pin, Release, utc_now
from busco.lake.releases import Live, history, read_live
from busco.orchestration import database
from busco.orchestration.places import ABANDONED
from busco.orchestration.service_health import BEAT, Health
from busco.project import Project
from busco.settings import Settings
from busco.text import printable

log = logging.getLogger(__name__)

NAMESPACE = "Busco"
DIMENSION = "Platform"
EVERY = 60.0  # seconds between two measurements: CloudWatch's standard resolution
_LAKE_EVERY = 300.0  # seconds between two listings of all deliveries, unless another release has become live
# Seconds after which the end of a task or run is counted: Airflow writes its row later than the time in it, and calls
# the task's callbacks in between.
_SETTLED = 60.0
_BATCH = 1000  # metrics per request (CloudWatch API reference, PutMetricData)
_TIMEOUT = 10.0  # seconds, for one request or query
# so that one part that hangs does not hold the others back for long
_QUICK: Any = {"connect_timeout": 5, "read_timeout": _TIMEOUT, "retries": {"mode": "standard", "max_attempts": 2}}

Unit = Literal["Count", "Seconds", "Bytes", "Percent"]

# What each metric measures; times are in UTC. docs/operating.md has the same table.
METRICS: dict[str, tuple[Unit, str]] = {
    "Heartbeat": ("Count", "1 for each measurement"),
    "SchedulerSilence": ("Seconds", "time since the scheduler's last heartbeat"),
    "TriggererSilence": ("Seconds", "time since the triggerer's last heartbeat"),
    "QueuedTasks": ("Count", "task instances that are scheduled or queued, but not running"),
    "ImportErrors": ("Count", "DAG files that Airflow can't import"),
    "FailedTasks": ("Count", "task instances that failed since the last measurement"),
    "SucceededRuns": ("Count", "DAG runs of dbt projects that succeeded since the last measurement"),
    "FailedRuns": ("Count", "DAG runs of dbt projects that failed since the last measurement"),
    "RunDuration": ("Seconds", "duration of each DAG run of a dbt project that ended since the last measurement"),
    "WaitingForSlots": ("Count", "ECS tasks that wait for one of BUSCO_MAX_ECS_TASKS slots"),
    "ReleaseAge": ("Seconds", "age of the live release"),
    "ReleaseRows": ("Count", "rows of all tables of the live release"),
    "ReleaseBytes": ("Bytes", "size of the data files of the live release"),
    "DeliveryAge": ("Seconds", "age of the newest delivery"),
    "UnpublishedAge": ("Seconds", "age of the oldest delivery that a project has not published; 0 if there is none"),
    "PublishLatency": ("Seconds", "from the oldest new delivery of a release to the release, for each new release"),
    "WaitingMessages": ("Count", "messages about new objects that wait"),
    "DeadLetters": ("Count", "messages that could not be processed"),
    "DiskUsed": ("Percent", "used part of the disk with Docker's data"),
    "MemoryUsed": ("Percent", "used part of the machine's memory, without caches"),
    "CertificateDays": ("Count", "days until the certificate that nginx serves expires"),
}


@dataclass(frozen=True)
class Metric:
    """A metric's values in one measurement; a metric without values is not sent."""

    name: str
    values: tuple[float, ...]

    @property
    def datum(self) -> dict[str, Any]:
        """The metric as PutMetricData expects it, without dimension and time."""
        return {"MetricName": self.name, "Unit": METRICS[self.name][0], "Values": list(self.values)}


def one(name: str, value: float) -> Metric:
    return Metric(name, (float(value),))


# -- what is measured -------------------------------------------------------------------------------------------------

_SILENCE = """
select job_type, extract(epoch from now() - max(latest_heartbeat)) from job
where job_type in ('SchedulerJob', 'TriggererJob') group by job_type
"""
_TASKS = "select count(*) from task_instance where state in ('scheduled', 'queued')"
_IMPORT_ERRORS = "select count(*) from import_error"
# without rows that nobody asks for any more, and that the next request deletes
_WAITING = f"select count(*) from busco_ecs_slot where not is_taken and asked_at > clock_timestamp() - {ABANDONED}"
_FAILED = "select count(*) from task_instance where state = 'failed' and end_date > %s and end_date <= %s"
_RUNS = """
select state, extract(epoch from end_date - start_date) from dag_run
where state in ('success', 'failed') and end_date > %s and end_date <= %s and start_date is not null
and exists (select 1 from dag_tag where dag_tag.dag_id = dag_run.dag_id and dag_tag.name like 'project:%%')
"""


@dataclass
class OfAirflow:
    """Measures Airflow by its database, whose clock is used. What ended before the first measurement is not counted.

    Args:
        connect: opens a connection.
    """

    connect: Callable[[], Any]
    _until: datetime | None = None
    _now: datetime | None = None

    def sent(self) -> None:
        """What was counted has reached CloudWatch, and is not counted again."""
        self._until = self._now

    def __call__(self) -> Iterator[Metric]:
        with closing(self.connect()) as connection, connection, connection.cursor() as cursor:
            cursor.execute("set local statement_timeout = %s", [int(_TIMEOUT * 1000)])
            cursor.execute("select now() - make_interval(secs => %s)", [_SETTLED])
            until = cursor.fetchone()[0]
            since = self._until or until
            cursor.execute(_SILENCE)
            silence = dict(cursor.fetchall())
            counted = {"QueuedTasks": _TASKS, "ImportErrors": _IMPORT_ERRORS}
            found = [one(name, _count(cursor, query)) for name, query in counted.items()]
            found.append(one("FailedTasks", _count(cursor, _FAILED, since, until)))
            cursor.execute(_RUNS, [since, until])
            runs = cursor.fetchall()
            # the table is created when the first ECS task is started
            has_slots = _count(cursor, "select count(to_regclass('busco_ecs_slot'))")
            found.append(one("WaitingForSlots", _count(cursor, _WAITING) if has_slots else 0))
        for job, name in (("SchedulerJob", "SchedulerSilence"), ("TriggererJob", "TriggererSilence")):
            if job in silence:
                found.append(one(name, silence[job]))
        for state, name in (("success", "SucceededRuns"), ("failed", "FailedRuns")):
            found.append(one(name, sum(run[0] == state for run in runs)))
        found.append(Metric("RunDuration", tuple(float(run[1]) for run in runs)))
        self._now, self._until = until, since
        yield from found


def _count(cursor: Any, query: str, *values: Any) -> int:
    cursor.execute(query, values)
    return int(cursor.fetchone()[0])


@dataclass(frozen=True)
class Ages:
    """The times (UTC) of a lake's deliveries: when each table's were made, oldest first, and since when the oldest one
    waits that is not published (None: nothing waits)."""

    made: Mapping[str, Sequence[datetime]]
    waiting: datetime | None

    @property
    def newest(self) -> datetime | None:
        return max((times[-1] for times in self.made.values() if times), default=None)


@dataclass
class OfLake:
    """Measures the lake's environment prod. What was published before the first measurement has no latency."""

    store: ObjectStore
    projects: Callable[[], Iterable[Project]]
    now: Callable[[], datetime] = utc_now
    environment: EnvironmentLayout = field(default_factory=lambda: EnvironmentLayout("prod"))
    _sent: str | None = None  # the release whose latency was sent last, '' if there was none
    _seen: str = ""  # the release that was live at the last measurement
    _ages: Ages | None = None  # as of `_listed`
    _listed: datetime | None = None
    _publishes: pending.Publishes = field(init=False)

    def __post_init__(self) -> None:
        self._publishes = pending.Publishes(self.store, self.environment)

    def sent(self) -> None:
        """What was measured has reached CloudWatch, and is not sent again."""
        self._sent = self._seen

    def __call__(self) -> Iterator[Metric]:
        now, live = self.now(), read_live(self.store, self.environment)
        seen, self._seen = self._seen, live.release.release if live else ""
        is_old = self._listed is None or (now - self._listed).total_seconds() >= _LAKE_EVERY
        if self._ages is None or is_old or seen != self._seen:
            self._ages, self._listed = self._measured_ages(live), now
        ages = self._ages
        if live is not None:
            yield one("ReleaseAge", (now - live.release.created_at).total_seconds())
            yield one("ReleaseRows", sum(table.rows for table in live.release.tables.values()))
            yield one("ReleaseBytes", sum(table.bytes for table in live.release.tables.values()))
        if ages.newest is not None:
            yield one("DeliveryAge", (now - ages.newest).total_seconds())
        yield one("UnpublishedAge", (now - ages.waiting).total_seconds() if ages.waiting else 0)
        if self._sent is None:
            self._sent = self._seen
        yield Metric("PublishLatency", tuple(self._latencies(live, ages.made)))

    def _measured_ages(self, live: Live | None) -> Ages:
        projects = list(self.projects())
        tables = {contract.name: contract for project in projects for contract in project.contracts}
        made = {
            name: sorted(self.store.modified(delivery_prefix(contract.source, contract.table)).values())
            for name, contract in tables.items()
        }
        waiting = []
        for project in projects:
            before = self._publishes.last(project.identity, live)
            for name in pending.unpublished(pending.current_sets(self.store, project.contracts), before):
                if before.rolled_back and live is not None:
                    # since the rollback, whatever it has taken back
                    waiting.append(live.release.created_at)
                    continue
                newer = [time for time in made[name] if before.pinned_at is not None and time > before.pinned_at]
                # S3's times have whole seconds, so the newest delivery can seem older than the pin. A project that has
                # never published anything waits for its newest delivery
                waiting += newer[:1] or made[name][-1:]
        return Ages(made, min(waiting, default=None))

    def _latencies(self, live: Live | None, made: Mapping[str, Sequence[datetime]]) -> Iterator[float]:
        """Yields, for each release since the last one that was sent, the time since its oldest new delivery.

        Args:
            made: the times at which each table's deliveries were made, oldest first.
        """
        if live is None or self._sent == live.release.release:
            return
        waiting: dict[str, tuple[Release, Pin]] = {}  # by project: a new release whose predecessor is not found yet
        is_new = True
        for release in history(self.store, self.environment):
            is_new = is_new and release.release != self._sent
            if not is_new and not waiting:
                return
            if (pin := self._pin(release)) is None:
                continue
            if found := waiting.pop(release.project, None):
                yield from _latency(*found, pin.created_at, made)
            if is_new:
                waiting[release.project] = (release, pin)
        for found in waiting.values():
            yield from _latency(*found, None, made)

    def _pin(self, release: Release) -> Pin | None:
        """Returns what a release of all models of a project is based on; None for other releases."""
        if release.kind != "publish":
            return None
        pin = self.store.read(RunLayout(self.environment.epoch(release.run, release.epoch)).pin, Pin)
        return pin if pin is not None and pin.nodes is None else None


def _latency(
    release: Release, pin: Pin, since: datetime | None, made: Mapping[str, Sequence[datetime]]
) -> Iterator[float]:
    """Yields a release's latency in seconds; nothing if it contains no new deliveries."""
    times = (time for table in pin.bronze for time in made.get(table, ()))
    if new := [time for time in times if time <= pin.created_at and (since is None or time > since)]:
        yield (release.created_at - min(new)).total_seconds()


@dataclass
class OfQueue:
    """Measures the queue of new objects. Without a configured queue, there is nothing to measure."""

    settings: Settings

    def __call__(self) -> Iterator[Metric]:
        if not self.settings.events_queue:
            return
        sqs = client("sqs", self.settings, **_QUICK)
        counts = Queue(sqs, self.settings.events_queue, self.settings.events_dead_letters).counts()
        yield one("WaitingMessages", counts.waiting)
        yield one("DeadLetters", counts.dead_letters)


@dataclass
class OfMachine:
    """Measures the machine from inside a container.

    Args:
        server: host and port of the web server whose certificate is measured; '' for none.
        name: the host name that the certificate is for.
    """

    server: str
    name: str

    def __call__(self) -> Iterator[Metric]:
        # a container's file system is on the disk with Docker's data, and /proc/meminfo is the machine's
        disk = shutil.disk_usage("/")
        # without the blocks that are reserved for root, as `df` does
        yield one("DiskUsed", 100 * disk.used / (disk.used + disk.free))
        yield one("MemoryUsed", psutil.virtual_memory().percent)
        if self.server:
            yield one("CertificateDays", (expiry(self.server, self.name) - utc_now()).total_seconds() / 86400)


def expiry(server: str, name: str) -> datetime:
    """Returns when the certificate that a server presents for a host name expires (UTC); it is not verified.

    Raises:
        OSError: the server can't be reached, or doesn't speak TLS.
    """
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    host, _, port = server.partition(":")
    with (
        socket.create_connection((host, int(port or 443)), timeout=_TIMEOUT) as plain,
        context.wrap_socket(plain, server_hostname=name) as secure,
    ):
        found = secure.getpeercert(binary_form=True)
    return x509.load_der_x509_certificate(found or b"").not_valid_after_utc


# -- the service ------------------------------------------------------------------------------------------------------


class Part(Protocol):
    """A part of what is measured. If it has `sent`, that is called once its metrics have reached CloudWatch."""

    def __call__(self) -> Iterable[Metric]: ...


def parsed_projects(settings: Settings) -> Iterator[Project]:
    """Yields the platform's dbt projects, without those that have not been parsed here."""
    for of_project in settings.of_all_projects():
        try:
            yield Project.of(of_project)
        except BuscoError as error:
            log.warning("%s: %s", of_project.dbt_project_dir, error)


def parts(settings: Settings) -> dict[str, Part]:
    """Returns what is measured, by the name of the part."""
    dsn = os.environ["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"]
    return {
        "Airflow": OfAirflow(lambda: database.connect(dsn, connect_timeout=int(_TIMEOUT))),
        "the machine": OfMachine(settings.metrics_server, urlsplit(settings.airflow_url).hostname or ""),
        "the queue": OfQueue(settings),
        "the lake": OfLake(
            ObjectStore(client("s3", settings, **_QUICK), settings.lake_bucket), lambda: parsed_projects(settings)
        ),
    }


def measured(name: str, part: Part) -> tuple[list[Metric], str]:
    """Measures a part; returns its metrics, and why it could not be measured, or ''."""
    try:
        return [metric for metric in part() if metric.values], ""
    except Exception as error:
        return [], f"{name} can't be measured: {printable(str(error) or type(error).__name__)}"


def put(cloudwatch: Any, platform: str, metrics: Sequence[Metric]) -> None:
    """Sends metrics to CloudWatch.

    Args:
        platform: the value of the dimension `Platform`.

    Raises:
        botocore.exceptions.BotoCoreError: CloudWatch can't be reached.
        botocore.exceptions.ClientError: CloudWatch refuses them.
    """
    common = {"Dimensions": [{"Name": DIMENSION, "Value": platform}], "Timestamp": datetime.now(UTC)}
    data = [{**metric.datum, **common} for metric in metrics]
    for start in range(0, len(data), _BATCH):
        cloudwatch.put_metric_data(Namespace=NAMESPACE, MetricData=data[start : start + _BATCH])


def send(cloudwatch: Any, platform: str, metrics: Sequence[Metric]) -> bool:
    """Sends metrics to CloudWatch; returns whether they arrived. If not, this is logged."""
    try:
        put(cloudwatch, platform, metrics)
    except (BotoCoreError, ClientError) as error:
        log.warning("the metrics could not be sent to CloudWatch: %s", error)
        return False
    return True


def serve(settings: Settings, stop: threading.Event, health: Health, every: float = EVERY) -> None:
    """Measures the platform every `every` seconds until `stop` is set.

    What can't be measured or sent is logged, and tried again with the next measurement. The service is healthy as long
    as it measures: an outage of CloudWatch must not make a deployment fail, and an alarm reports missing metrics.
    """
    cloudwatch, measure = client("cloudwatch", settings, **_QUICK), parts(settings)
    due = time.monotonic()
    while True:
        send(cloudwatch, settings.metrics_platform, [one("Heartbeat", 1)])
        for name, part in measure.items():
            health.beat()
            found, problem = measured(name, part)
            if problem:
                log.warning("%s", problem)
            elif send(cloudwatch, settings.metrics_platform, found) and (sent := getattr(part, "sent", None)):
                sent()
        due = max(due + every, time.monotonic())
        while (left := due - time.monotonic()) > 0:
            if stop.wait(min(left, BEAT)):
                return
            health.beat()
        if stop.is_set():
            return
