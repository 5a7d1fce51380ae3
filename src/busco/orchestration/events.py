"""The events service (`busco events listen`): new objects in the landing bucket become deliveries, and start runs.

One thread turns messages into deliveries (`busco.events.consumer`), and announces each changed bronze table with an
Airflow dataset event, which makes the scheduler start the DAGs that read the table. Airflow can lose such events: while
a DAG is paused, or if several arrive close together (apache/airflow#38891, #47398). A second thread therefore compares
the deliveries with the runs, and starts a run that is missing (`busco.events.pending`).
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from itertools import count
from typing import Any

from busco.aws import client
from busco.environments import code_version
from busco.errors import BuscoError
from busco.events import pending
from busco.events.consumer import Consumer, OrderFailed
from busco.events.queue import Queue
from busco.lake.kept import Kept
from busco.lake.layout import EnvironmentLayout, ingest_order, ingest_outcome, run_key
from busco.lake.objects import ObjectStore
from busco.lake.records import Ending, IngestOrder, IngestOutcome, Pin
from busco.lake.releases import Live, read_live
from busco.orchestration.dag_names import bronze_dataset, project_tag
from busco.orchestration.launch import start_process, token_of
from busco.orchestration.service_health import BEAT, Health, stopped
from busco.private import make_private
from busco.processes import kill_tree
from busco.project import Project
from busco.settings import Settings, get_settings, require_lake
from busco.text import printable

log = logging.getLogger(__name__)

# Seconds for which a run must have been missing before it is started: the scheduler needs a few to start one for a
# dataset event.
_GRACE = 10.0
_LOOK, _LOOK_IDLE = 2.0, 20.0  # seconds between two comparisons: while something is pending, and otherwise
_RECENT_RUNS, _MOST_RUNS = 30, 1_000  # how many of a DAG's newest runs are read at once, and compared at most
_LONG = 1800.0  # seconds after which an order that is still being carried out is reported
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
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


def listen(settings: Settings, say: Callable[[str], None]) -> None:
    """Runs the service until SIGTERM or SIGINT.

    Raises:
        BuscoError: a setting is missing, or the environment is not prod.
    """
    require_lake(settings)
    if settings.environment != "prod":
        raise BuscoError(
            f"only the environment prod ingests objects, not {settings.environment}", "unset BUSCO_ENVIRONMENT"
        )
    stop = stopped()
    store, environment = ObjectStore(client("s3", settings), settings.lake_bucket), EnvironmentLayout("prod")
    health = Health(settings.state, "events")
    orders = Orders(settings, store, stop, health.problem)
    runs = Runs(settings, store, environment, health.problem, orders.is_loading)
    consumer = Consumer(
        queue=events_queue(settings),
        bucket=settings.landing_bucket,
        ingest=orders,
        announce=lambda outcome: announce(outcome, runs),
        quiet=settings.events_quiet,
        stop=stop,
        say=health.problem,
        compare=Orders(settings, store, stop, health.problem),
        loses_messages=settings.endpoint_url is not None,
        paused=paused,
    )
    failed: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            try:
                work()
            except BaseException as error:  # the whole service ends; Docker starts it again
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
    try:
        while not stop.wait(BEAT):
            health.beat()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    if failed:
        raise failed[0]


# -- ingest -----------------------------------------------------------------------------------------------------------


class Interrupted(Exception):
    """An order was interrupted: the service is stopping, or ECS had no capacity or reclaimed the task."""


@dataclass
class Orders:
    """Has orders carried out by `busco ingest`, in a process on this machine or in an ECS task, and waits for the
    outcome. All calls must come from one thread, except those of `is_loading`.

    Args:
        say: receives a message about an order that takes very long, and '' when it has ended.
    """

    settings: Settings
    store: ObjectStore
    stop: threading.Event
    say: Callable[[str], None] = lambda _: None
    _loop: asyncio.AbstractEventLoop | None = None
    _launcher: Any = None
    _ended: dict[str, int] = field(default_factory=dict)  # how many tasks of the current order have ended
    _began: float | None = None  # when the current order was started

    def is_loading(self) -> bool:
        """Returns whether an order is being carried out that will soon have a dataset event of its own."""
        began = self._began
        return began is not None and time.monotonic() - began < _LONG

    def __call__(self, order: IngestOrder) -> IngestOutcome:
        """Returns an order's outcome; repeating a call doesn't repeat the work.

        Raises:
            OrderFailed: the process or task ended without an outcome.
            Interrupted, botocore.exceptions.ClientError: a retry may succeed.
        """
        outcome = self.store.read(ingest_outcome(order.order), IngestOutcome)
        if outcome is None:
            self.store.create(ingest_order(order.order), order)
            self._began = began = time.monotonic()
            try:
                with self._watched(order.order):
                    why = self._run(["ingest", "--order", order.order], order.order)
            finally:
                self._began = None
            outcome = self.store.read(ingest_outcome(order.order), IngestOutcome)
            if self.stop.is_set() and outcome is None:
                raise Interrupted("the service is stopping")
            if outcome is None:
                raise OrderFailed(printable(why))
            log.info("order=%s seconds=%.1f %s", order.order, time.monotonic() - began, counted(outcome))
        for one in outcome.objects:
            if one.outcome == "refused":
                log.warning("refused %s: %s", printable(one.key), printable(one.reason))
        return outcome

    @contextmanager
    def _watched(self, order: str) -> Iterator[None]:
        """Reports an order that is still being carried out after half an hour. It is not stopped: a large file takes
        long too, and on-call can stop the process or task, after which the order is repeated."""
        said = threading.Event()

        def report() -> None:
            said.set()
            self.say(f"the order {order} is still being carried out after {_LONG / 60:.0f} minutes; see its log")

        timer = threading.Timer(_LONG, report)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            if said.is_set():
                self.say("")

    def _run(self, words: list[str], order: str) -> str:
        """Has an order carried out, and returns how the process or task ended."""
        if self.settings.execution == "local":
            return self._here(words, order)
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
        return self._loop.run_until_complete(self._on_ecs(words, order))

    def _here(self, words: list[str], order: str) -> str:
        path = self.settings.state / "log" / "ingest" / f"{order}.log"
        make_private(path.parent)
        with path.open("wb") as out:
            process = start_process(self.settings, words, "ingest", out)
            while process.poll() is None:
                if self.stop.wait(0.05):
                    kill_tree(process.pid, 5.0)
                    raise Interrupted("the service is stopping")
        text = path.read_text(errors="replace").strip()
        path.unlink()
        return f"exit status {process.returncode}: {text[-2000:]}"

    async def _on_ecs(self, words: list[str], order: str) -> str:
        from busco.orchestration.ecs import EcsLauncher
        from busco.orchestration.slots import Slots

        if self._launcher is None:
            self._launcher = EcsLauncher(self.settings, Slots.of_airflow(self.settings.max_ecs_tasks))
        work = asyncio.ensure_future(self._task(words, order))
        while not work.done():
            await asyncio.wait([work], timeout=0.5)
            if self.stop.is_set() and not work.done():
                work.cancel()
        try:
            return work.result()
        except asyncio.CancelledError:
            raise Interrupted("the service is stopping") from None

    async def _task(self, words: list[str], order: str) -> str:
        launcher = self._launcher
        # the same token until the task's end is known: a retry after a lost response must not start a second task
        token = token_of("ingest", order, self._ended.get(order, 0))
        task = await launcher.start_command(words, token, f"ingest {order}", log.info, "small")
        ending: Ending = await launcher.end_of(task)
        self._ended = {order: self._ended.get(order, 0) + 1}
        if ending.passing:
            raise Interrupted(ending.reason)
        return f"{ending.reason}\n{await launcher.output(task.arn)}".strip()


def counted(outcome: IngestOutcome) -> str:
    """Returns the numbers of an outcome's objects, such as `ingested=3 refused=1`."""
    counts: dict[str, int] = {}
    for one in outcome.objects:
        counts[one.outcome] = counts.get(one.outcome, 0) + 1
    return " ".join(f"{name}={number}" for name, number in sorted(counts.items())) or "objects=0"


def reconcile(settings: Settings, show: Callable[[str], None], say: Callable[[str], None]) -> bool:
    """Ingests everything in the landing bucket that was never ingested, and announces the changed tables.

    Returns whether all objects have been handled.

    Args:
        show: receives a line for each object.
        say: receives what prevents this from working, which is then retried.

    Raises:
        BuscoError: no lake or no queue is configured.
    """
    require_lake(settings)
    stop, store = threading.Event(), ObjectStore(client("s3", settings), settings.lake_bucket)
    runs, orders = Runs(settings, store, EnvironmentLayout("prod")), Orders(settings, store, stop)

    def announced(outcome: IngestOutcome) -> None:
        announce(outcome, runs)
        for one in outcome.objects:
            show(f"{one.outcome}: {one.key}" + (f": {one.reason}" if one.reason else ""))

    made = Consumer(
        events_queue(settings), settings.landing_bucket, orders, announced, settings.events_quiet, stop, say
    )
    return made.reconcile()


# -- pausing ----------------------------------------------------------------------------------------------------------

# The Airflow variable that pauses the service; its value says who paused it, and why.
PAUSED = "busco_events_paused"


def paused() -> str:
    """Returns who paused the service and why, or '' if it is not paused."""
    from airflow.models import Variable
    from airflow.utils.session import create_session

    # not Variable.get, which returns its default if the database can't be reached
    with create_session() as session:
        found = session.query(Variable).filter(Variable.key == PAUSED).first()
        return str(found.val) if found is not None else ""


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


def announce(outcome: IngestOutcome, runs: Runs) -> None:
    """Tells Airflow which bronze tables have new deliveries.

    An object that had been delivered before is announced again if a project has not published its table's deliveries,
    and no run is based on them: its first announcement may have been lost.
    """
    from airflow.datasets.manager import dataset_manager
    from airflow.utils.session import create_session

    tables: dict[str, list[Any]] = {}
    known: dict[str, list[Any]] = {}
    for one in outcome.objects:
        if one.outcome in ("ingested", "known"):
            (tables if one.outcome == "ingested" else known).setdefault(one.table, []).append(one)
    if known.keys() - tables.keys():
        needed = runs.tables_without_run()
        tables |= {table: objects for table, objects in known.items() if table in needed - tables.keys()}
    if not tables:
        return
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
    runs.announced()


@dataclass
class Runs:
    """Starts the runs that deliveries need and that nothing else has started.

    Args:
        is_loading: whether deliveries are being loaded. Until all of them are recorded, no run is started for some of
            them: one load is one run.
    """

    settings: Settings
    store: ObjectStore
    environment: EnvironmentLayout
    say: Callable[[str], None] = lambda _: None
    is_loading: Callable[[], bool] = lambda: False
    publishes: pending.Publishes = field(init=False)
    # what listings have returned; an announcement makes them outdated
    listings: Kept = field(default_factory=Kept)
    _news: threading.Event = field(default_factory=threading.Event)
    _due: dict[str, tuple[str, float]] = field(default_factory=dict)  # by project: the set, and since when
    _pins: dict[str, dict[pending.RecentRun, Pin | None]] = field(default_factory=dict)  # by project
    _had_problem: bool = False

    def __post_init__(self) -> None:
        self.publishes = pending.Publishes(self.store, self.environment)

    def announced(self) -> None:
        self.listings.clear()
        self._news.set()

    def tables_without_run(self) -> set[str]:
        """Returns the bronze tables with deliveries that a project has not published, and that no run is based on."""
        return {table for _, found in self.standings() if found.state in ("due", "waiting") for table in found.tables}

    def keep_up(self, stop: threading.Event) -> None:
        """Compares the deliveries with the runs until `stop` is set. A comparison that fails is logged and repeated."""
        while not stop.is_set():
            busy = False
            try:
                busy = not paused() and self.look()
            except Exception as error:
                log.warning("deliveries can't be compared with runs: %s", printable(str(error)))
            deadline = time.monotonic() + (_LOOK if busy else _LOOK_IDLE)
            while not stop.is_set() and time.monotonic() < deadline and not self._news.wait(0.2):
                pass
            if self._news.is_set():
                self._news.clear()
                stop.wait(_LOOK)

    def look(self) -> bool:
        """Starts the runs that are missing. Returns whether another look is needed soon."""
        busy, problem = False, ""
        for project, found in self.standings():
            is_loading = self.is_loading()
            if found.state != "due" or is_loading:
                self._due.pop(project.identity, None)
                busy = busy or is_loading or found.state in ("starting", "running", "waiting")
                continue
            try:
                busy = self._start(project, found) or busy
            except Exception as error:  # of one project: the others need their runs
                problem = f"no run of {project.identity} can be started: {printable(str(error))}"
                log.warning(problem)
        if problem or self._had_problem:
            self.say(problem)
        self._had_problem = bool(problem)
        return busy

    def standings(self) -> Iterator[tuple[Project, pending.Standing]]:
        """Yields each project that has been parsed here, and whether it has published the current deliveries.

        A project about which this can't be determined is logged and left out.
        """
        live = read_live(self.store, self.environment)
        for settings in self.settings.of_all_projects():
            try:
                found = self.standing(settings, live)
            except Exception as error:
                log.warning("%s: %s", settings.dbt_project_dir, printable(str(error)))
            else:
                yield found

    def standing(self, settings: Settings, live: Live | None, without: str = "") -> tuple[Project, pending.Standing]:
        """Returns a project, and whether it has published the current deliveries.

        Args:
            settings: those of the project (`Settings.of_project`).
            live: the live release.
            without: the key of a run that is left out of account.

        Raises:
            BuscoError: the project has not been parsed here.
        """
        project = Project.of(settings)
        before = self.publishes.last(project.identity, live)
        others = (one for one in recent_runs(project.identity) if one.key != without)
        read: dict[pending.RecentRun, Pin | None] = {}
        known = self._pins.get(project.identity, {})
        self._pins[project.identity] = read  # only the runs of this look are kept
        attempts = pending.attempts_of(self.store, self.environment, others, known, read)
        code = pending.Code(code_version(self.settings), project.hash)
        now = self._current_sets(project)
        return project, pending.standing(now, before, attempts, code, live.current if live else None)

    def _current_sets(self, project: Project) -> dict[str, pending.CurrentSet]:
        found: dict[str, pending.CurrentSet] = {}
        for contract in project.contracts:
            what = (contract.source, contract.table, contract.hash, contract.pii)
            found |= self.listings.get(what, partial(pending.current_sets, self.store, [contract]))
        return found

    def _start(self, project: Project, found: pending.Standing) -> bool:
        """Starts a project's run once it has been missing for long enough. Returns whether another look is needed."""
        dag_id = scheduled_dag(project.identity)
        if dag_id is None:  # there is none, or it is paused
            self._due.pop(project.identity, None)
            return False
        known = self._due.get(project.identity)
        if known is None or known[0] != found.set_id:
            self._due[project.identity] = known = (found.set_id, time.monotonic())
        # wait longer after runs that ended before they were pinned, and while Airflow is about to start a run
        grace = _GRACE * 6 ** (found.unpinned + is_queued(dag_id))
        if time.monotonic() - known[1] < grace:
            return True
        # An ended run can have the first id: the same set was current before, and is again, since a record of a
        # delivery was deleted. Two services find the same run, because only ended ones are passed over
        for number in count(found.unpinned):
            run_id = f"{pending.run_prefix(found.set_id)}{number}"
            started = start_run(dag_id, run_id, dict(found.tables))
            if started:
                log.info("started run dag=%s run=%s: no run had been started for %s", dag_id, run_id, found.tables)
            if started or is_active(dag_id, run_id):
                break
        return True


def not_needed(dag_run: Any, project_dir: str, own: Collection[str]) -> str:
    """Returns why a run that dataset events have started has nothing to do, or '' if it has.

    Dataset events that arrive close together, or during a run, can start more runs than their deliveries need; and one
    can arrive after another run has failed with its deliveries.

    Args:
        project_dir: the dbt project's folder, relative to the platform's home; empty for the platform's own project.
        own: the URIs of the datasets of the project's bronze tables.
    """
    from airflow.models.dag import DagModel
    from airflow.utils.session import create_session

    settings = get_settings()
    if settings.environment != "prod" or dag_run.run_type != "dataset_triggered" or dag_run.clear_number:
        return ""
    with create_session() as session:
        schedule = session.get(DagModel, dag_run.dag_id).schedule_dataset_references
        if any(one.dataset.uri not in own for one in schedule):
            return ""  # what else starts the DAG may need a run
    runs = Runs(settings, ObjectStore(client("s3", settings), settings.lake_bucket), EnvironmentLayout("prod"))
    try:
        live = read_live(runs.store, runs.environment)
        own_key = run_key(dag_run.dag_id, dag_run.run_id)
        _, found = runs.standing(settings.of_project(project_dir or None), live, own_key)
    except BuscoError:
        return ""  # pinning the run fails with the reason
    if found.state == "current":
        return "all deliveries are published"
    if found.state == "blocked" and not found.unpinned:
        return f"run {found.run_id} was based on the same deliveries and the same code, and was not published"
    return ""


def recent_runs(project: str) -> Iterator[pending.RecentRun]:
    """Yields the newest runs of a project's DAGs, newest first, at most 1,000: as many as the caller reads."""
    from airflow.models.dag import DagTag
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session

    for start in range(0, _MOST_RUNS, _RECENT_RUNS):
        with create_session() as session:
            rows = (
                session.query(DagRun.dag_id, DagRun.run_id, DagRun.state, DagRun.end_date, DagRun.queued_at)
                .join(DagTag, DagTag.dag_id == DagRun.dag_id)
                .filter(DagTag.name == project_tag(project))
                .order_by(DagRun.id.desc())
                .offset(start)
                .limit(_RECENT_RUNS)
                .all()
            )
        for dag_id, run_id, state, ended_at, queued_at in rows:
            is_over = str(state) not in ("queued", "running")
            # a run that was set to failed while it was queued may have no end
            yield pending.RecentRun(
                run_id, run_key(dag_id, run_id), (ended_at or queued_at or EPOCH) if is_over else None
            )
        if len(rows) < _RECENT_RUNS:
            return


def is_active(dag_id: str, run_id: str) -> bool:
    """Whether a DAG run is queued or running."""
    from airflow.models.dagrun import DagRun
    from airflow.utils.session import create_session

    with create_session() as session:
        found = session.query(DagRun.state).filter(DagRun.dag_id == dag_id, DagRun.run_id == run_id).scalar()
    return str(found) in ("queued", "running")


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


def is_queued(dag_id: str) -> bool:
    """Whether the scheduler is about to start a run of a DAG for dataset events."""
    from airflow.models.dataset import DatasetDagRunQueue
    from airflow.utils.session import create_session

    with create_session() as session:
        queued = session.query(DatasetDagRunQueue).filter(DatasetDagRunQueue.target_dag_id == dag_id)
        return bool(session.query(queued.exists()).scalar())


def start_run(dag_id: str, run_id: str, deliveries: Mapping[str, int]) -> bool:
    """Starts a DAG run; returns False if a run with this id exists."""
    from airflow.api.common.trigger_dag import trigger_dag
    from airflow.exceptions import DagRunAlreadyExists

    try:
        trigger_dag(dag_id, run_id=run_id, conf={"new_deliveries": dict(deliveries)}, replace_microseconds=False)
    except DagRunAlreadyExists:
        return False
    return True
