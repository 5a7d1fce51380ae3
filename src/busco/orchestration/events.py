"""The events service (`busco events listen`): new objects in the landing bucket become deliveries, and start runs.

One thread turns messages into deliveries (`busco.events.consumer`), and announces each changed bronze table with an
Airflow dataset event, which makes the scheduler start the DAGs that read the table. Airflow can lose such events: while
a DAG is paused, or if several arrive close together (apache/airflow#38891, #47398). A second thread therefore compares
the deliveries with the runs, and starts a run that is missing (`busco.events.pending`).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import secrets
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from busco.aws import client
from busco.environments import code_version, python, without_airflow
from busco.errors import BuscoError
from busco.events import pending
from busco.events.consumer import Consumer, OrderFailed
from busco.events.queue import Queue
from busco.lake.layout import EnvironmentLayout, ingest_order, ingest_outcome, run_key, stamp
from busco.lake.objects import ObjectStore
from busco.lake.records import Arrival, Ending, IngestOrder, IngestOutcome, utc_now
from busco.lake.releases import read_live
from busco.orchestration.dag import bronze_dataset, project_tag
from busco.orchestration.events_health import BEAT, Health
from busco.orchestration.launch import token_of
from busco.private import UMASK
from busco.processes import kill_tree
from busco.project import Project
from busco.settings import Settings, require_lake

log = logging.getLogger(__name__)

# Seconds for which a run must have been missing before it is started: the scheduler needs a few to start one for a
# dataset event.
_GRACE = 10.0
_LOOK, _LOOK_IDLE = 2.0, 60.0  # seconds between two comparisons: while something is pending, and otherwise
_RECENT_RUNS = 30  # how many of a DAG's newest runs are compared
_IN_EVENT = 100  # how many objects a dataset event lists


def events_queue(settings: Settings) -> Queue:
    """Returns the queue of the landing bucket's events.

    Raises:
        BuscoError: no queue is configured.
    """
    missing = [
        name
        for name, value in {
            "BUSCO_EVENTS_QUEUE": settings.events_queue,
            "BUSCO_EVENTS_DEAD_LETTERS": settings.events_dead_letters,
            "BUSCO_LANDING_BUCKET": settings.landing_bucket,
        }.items()
        if not value
    ]
    if missing:
        raise BuscoError(
            f"{' and '.join(missing)} is not set" if len(missing) == 1 else f"{', '.join(missing)} are not set",
            "deploy deploy/aws/events.yaml and lake.yaml, and set the variables to their outputs",
        )
    return Queue(client("sqs", settings), settings.events_queue, settings.events_dead_letters)


def idle(settings: Settings) -> None:
    """Does nothing, and reports to be healthy, until SIGTERM or SIGINT."""
    stop, health = _stopped(), Health(settings.state)
    while not stop.wait(BEAT):
        health.beat()


def _stopped() -> threading.Event:
    """Returns an event that SIGTERM and SIGINT set."""
    stop = threading.Event()
    for one in (signal.SIGTERM, signal.SIGINT):
        signal.signal(one, lambda *_: stop.set())
    return stop


def listen(settings: Settings, say: Callable[[str], None]) -> None:
    """Runs the service until SIGTERM or SIGINT.

    Raises:
        BuscoError: a setting is missing.
    """
    require_lake(settings)
    stop = _stopped()
    store, environment = ObjectStore(client("s3", settings), settings.lake_bucket), EnvironmentLayout("prod")
    health = Health(settings.state)
    runs = Runs(settings, store, environment)
    consumer = Consumer(
        queue=events_queue(settings),
        bucket=settings.landing_bucket,
        ingest=Orders(settings, store, stop),
        announce=lambda outcome: runs.announced(announce(outcome)),
        quiet=settings.events_quiet,
        stop=stop,
        say=health.problem,
        loses_messages=settings.endpoint_url is not None,
        paused=paused,
    )
    failed: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            try:
                work()
            except BaseException as error:  # the whole service ends, and is started again
                failed.append(error)
                stop.set()

        return run

    threads = [
        threading.Thread(target=guarded(consumer.run), name="messages"),
        threading.Thread(target=guarded(lambda: runs.keep_up(stop)), name="runs"),
    ]
    for thread in threads:
        thread.start()
    say(f"listening to {settings.events_queue}")
    while not stop.wait(BEAT):
        health.beat()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


# -- ingest -----------------------------------------------------------------------------------------------------------


@dataclass
class Orders:
    """Orders `busco ingest`, as a process on this machine or as an ECS task, and waits for the outcome."""

    settings: Settings
    store: ObjectStore
    stop: threading.Event

    def __call__(self, objects: Sequence[Arrival], everything: bool = False) -> IngestOutcome:
        moment = utc_now()
        order = IngestOrder(
            order=f"{stamp(moment)}-{secrets.token_hex(4)}",
            objects=tuple(objects),
            everything=everything,
            ordered_at=moment,
        )
        self.store.create(ingest_order(order.order), order)
        began = time.monotonic()
        why = self._run(["ingest", "--order", order.order], order.order)
        outcome = self.store.read(ingest_outcome(order.order), IngestOutcome)
        if outcome is None:
            raise OrderFailed(why)
        counts: dict[str, int] = {}
        for one in outcome.objects:
            counts[one.outcome] = counts.get(one.outcome, 0) + 1
        listed = " ".join(f"{name}={number}" for name, number in sorted(counts.items())) or "objects=0"
        log.info("order=%s seconds=%.1f %s", order.order, time.monotonic() - began, listed)
        for one in outcome.objects:
            if one.outcome == "refused":
                log.warning("refused %s: %s", one.key, one.reason)
        return outcome

    def _run(self, words: list[str], order: str) -> str:
        """Carries out an order, and returns how the process or task ended."""
        if self.settings.execution == "local":
            return self._here(words, order)
        return asyncio.run(self._on_ecs(words, order))

    def _here(self, words: list[str], order: str) -> str:
        path = self.settings.state / "log" / "ingest" / f"{order}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as out:
            process = subprocess.Popen(
                [str(python(self.settings, "dbt")), "-m", "busco", *words],
                env=without_airflow(dict(os.environ)) | {"BUSCO_LOCAL_ROLE": "ingest"},
                cwd=self.settings.home,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                umask=UMASK,
            )
            while process.poll() is None:
                if self.stop.wait(0.05):
                    kill_tree(process.pid, 5.0)
        text = path.read_text(errors="replace").strip()
        if process.returncode == 0:
            path.unlink()
        return f"exit status {process.returncode}: {text[-2000:]}"

    async def _on_ecs(self, words: list[str], order: str) -> str:
        from busco.orchestration.async_aws import forget_clients
        from busco.orchestration.ecs import EcsLauncher
        from busco.orchestration.slots import Slots

        launcher = EcsLauncher(self.settings, Slots.of_airflow(self.settings.max_ecs_tasks))
        try:
            task = await launcher.start_command(words, token_of("ingest", order), f"ingest {order}", log.info, "small")
            ending: Ending = await launcher.end_of(task)
            return f"{ending.reason}\n{await launcher.output(task.arn)}".strip()
        finally:
            await forget_clients()


def reconcile(settings: Settings, stop: threading.Event) -> IngestOutcome:
    """Ingests everything in the landing bucket that was never ingested, and announces the changed tables.

    Raises:
        BuscoError: the order ended without an outcome; the message has the end of its output.
    """
    require_lake(settings)
    try:
        outcome = Orders(settings, ObjectStore(client("s3", settings), settings.lake_bucket), stop)((), everything=True)
    except OrderFailed as error:
        raise BuscoError(f"ingest failed: {error}", "fix the cause, and try again") from error
    announce(outcome)
    return outcome


# -- pausing ----------------------------------------------------------------------------------------------------------

# The Airflow variable that pauses the service; its value says who paused it, and why.
PAUSED = "busco_events_paused"


def paused() -> str:
    """Returns who paused the service and why, or '' if it is not paused."""
    from airflow.models import Variable

    return str(Variable.get(PAUSED, default_var=""))


def pause(who: str, reason: str) -> None:
    """Makes the service leave messages in the queue, which keeps them for seven days, and start no runs."""
    from airflow.models import Variable

    Variable.set(PAUSED, f"{who}: {reason}", description="while this exists, new objects wait: busco events resume")


def resume() -> str:
    """Ends the pause, and returns who had paused the service and why; '' if it was not paused."""
    from airflow.models import Variable

    before = paused()
    Variable.delete(PAUSED)
    return before


# -- Airflow ----------------------------------------------------------------------------------------------------------


def announce(outcome: IngestOutcome) -> list[str]:
    """Tells Airflow which bronze tables have new deliveries, and returns these tables.

    Objects that had been delivered before are not announced again; if their announcement was lost, `Runs` notices.
    """
    from airflow.datasets.manager import dataset_manager
    from airflow.utils.session import create_session

    tables: dict[str, list[Any]] = {}
    for one in outcome.objects:
        if one.outcome == "ingested":
            tables.setdefault(one.table, []).append(one)
    if not tables:
        return []
    with create_session() as session:
        for table, objects in sorted(tables.items()):
            extra = {
                "order": outcome.order,
                "deliveries": len(objects),
                "rows": sum(one.rows - one.quarantined for one in objects),
                "bytes": sum(one.size for one in objects),
                "objects": [
                    {"key": one.key, "version": one.version, "etag": one.etag, "bytes": one.size, "rows": one.rows}
                    for one in objects[:_IN_EVENT]
                ],
            }
            event = dataset_manager.register_dataset_change(dataset=bronze_dataset(table), extra=extra, session=session)
            if event is None:
                log.info("no DAG is scheduled on %s", table)
    return sorted(tables)


@dataclass
class Runs:
    """Starts the runs that deliveries need and that nothing else has started."""

    settings: Settings
    store: ObjectStore
    environment: EnvironmentLayout
    _news: threading.Event = field(default_factory=threading.Event)
    _due: dict[str, tuple[str, float]] = field(default_factory=dict)  # by project: the set, and since when

    def announced(self, tables: Sequence[str]) -> None:
        if tables:
            self._news.set()

    def keep_up(self, stop: threading.Event) -> None:
        """Compares the deliveries with the runs until `stop` is set. An outage is logged, and ends by itself."""
        while not stop.is_set():
            busy = False
            try:
                busy = not paused() and self.look()
            except Exception as error:
                log.warning("could not compare deliveries with runs: %s", error)
            deadline = time.monotonic() + (_LOOK if busy else _LOOK_IDLE)
            while not stop.is_set() and time.monotonic() < deadline and not self._news.wait(0.2):
                pass
            if self._news.is_set():
                self._news.clear()
                stop.wait(_LOOK)

    def look(self) -> bool:
        """Starts the runs that are missing. Returns whether another look is needed soon."""
        busy = False
        for project, found in self.standings():
            if found.state == "due":
                busy = True
                self._start(project, found)
            else:
                self._due.pop(project.identity, None)
                busy = busy or found.state in ("starting", "running", "waiting")
        return busy

    def standings(self) -> Iterator[tuple[Project, pending.Standing]]:
        """Yields each project that has been parsed here, and whether it has published the current deliveries."""
        live = read_live(self.store, self.environment)
        for settings in self.settings.of_all_projects():
            try:
                project = Project.of(settings)
            except BuscoError as error:
                log.warning("%s: %s", settings.dbt_project_dir, error)
                continue
            now = pending.wanted(self.store, project.contracts)
            before = pending.published(self.store, self.environment, project.identity) if live else {}
            runs = [
                (run_id, run_key(dag_id, run_id), active) for dag_id, run_id, active in recent_runs(project.identity)
            ]
            tries = pending.tries_of(self.store, self.environment, runs)
            code = pending.Code(code_version(settings), project.hash)
            yield project, pending.standing(now, before, tries, code, live.current if live else None)

    def _start(self, project: Project, found: pending.Standing) -> None:
        known = self._due.get(project.identity)
        if known is None or known[0] != found.mark:
            self._due[project.identity] = (found.mark, time.monotonic())
            return
        if time.monotonic() - known[1] < _GRACE:
            return
        dag_id = scheduled_dag(project.identity)
        if dag_id is None:
            return
        live = read_live(self.store, self.environment)
        resumed = live.current.resumed.hold.when if live and live.current.resumed else ""
        # The same set, code and hold lead to the same id, so that two services, or a retry, start one run.
        parts = [project.identity, found.mark, code_version(self.settings), project.hash, str(resumed)]
        run_id = f"deliveries__{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]}"
        if start_run(dag_id, run_id, dict(found.tables)):
            log.info("started run dag=%s run=%s: no event has started one for %s", dag_id, run_id, found.tables)


def recent_runs(project: str) -> list[tuple[str, str, bool]]:
    """Returns the newest runs of a project's DAGs, newest first: DAG id, run id, and whether the run is active."""
    from airflow.models.dag import DagTag
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session

    with create_session() as session:
        rows = (
            session.query(DagRun.dag_id, DagRun.run_id, DagRun.state)
            .join(DagTag, DagTag.dag_id == DagRun.dag_id)
            .filter(DagTag.name == project_tag(project))
            .order_by(DagRun.id.desc())
            .limit(_RECENT_RUNS)
            .all()
        )
    return [(dag_id, run_id, str(state) in ("queued", "running")) for dag_id, run_id, state in rows]


def scheduled_dag(project: str) -> str | None:
    """Returns the DAG that new deliveries start for a project; None if there is none, or if it is paused."""
    from airflow.models.dag import DagModel, DagTag
    from airflow.utils.session import create_session

    with create_session() as session:
        dags = (
            session.query(DagModel)
            .join(DagTag, DagTag.dag_id == DagModel.dag_id)
            .filter(DagTag.name == project_tag(project), DagModel.is_active, ~DagModel.is_paused)
            .order_by(DagModel.dag_id)
            .all()
        )
        return next((str(dag.dag_id) for dag in dags if dag.schedule_dataset_references), None)


def start_run(dag_id: str, run_id: str, deliveries: Mapping[str, int]) -> bool:
    """Starts a DAG run; returns whether it did not exist before."""
    from airflow.api.common.trigger_dag import trigger_dag
    from airflow.exceptions import DagRunAlreadyExists

    try:
        trigger_dag(dag_id, run_id=run_id, conf={"new_deliveries": dict(deliveries)}, replace_microseconds=False)
    except DagRunAlreadyExists:
        return False
    return True
