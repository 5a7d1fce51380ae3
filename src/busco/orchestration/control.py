"""The tasks that Airflow's workers run around the dbt graph: pin, publish, Glue, and the on-call operations."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

from airflow.exceptions import AirflowException, AirflowFailException, AirflowSkipException
from botocore.exceptions import ClientError

from busco.aws import client, publisher_client
from busco.catalog import glue, repair
from busco.catalog.glue_drift import Catalog
from busco.environments import code_version
from busco.errors import BuscoError
from busco.events import attach
from busco.lake import pins, releases
from busco.lake.deliveries import Contract
from busco.lake.drift import Finding
from busco.lake.freshness import Freshness, late_tables
from busco.lake.layout import EnvironmentLayout, run_key
from busco.lake.object_versions import DENIED
from busco.lake.objects import ObjectStore
from busco.lake.records import utc_now
from busco.lake.runs import open_run
from busco.orchestration import alerts
from busco.orchestration.costs import run_cost
from busco.orchestration.selections import selected
from busco.project import Project
from busco.selection import selectors
from busco.settings import LAYERS, Settings, get_settings, require_lake
from busco.text import count, printable

log = logging.getLogger(__name__)

# How on-call repairs the differences that a check has found.
REPAIR = "to repair them, run the `drift` DAG with the action `repair`, or: busco release repair"
# A failed check names at most this many findings; its log has all of them.
_NAMED_FINDINGS = 20


def pin(
    dag_id: str, run_id: str, attempt: int, origin: str, select: str, full_refresh: bool, project_dir: str = ""
) -> str:
    """Pins the run, with the task's try number as the run's epoch (R1), and returns the run's key.

    Args:
        project_dir: the dbt project's folder, relative to the platform's home; empty for the platform's own project.

    Raises:
        AirflowFailException: the selection matches nothing or contains options, deliveries are outdated, the project
            has not been parsed, or another project has published a table with the same name or uses this project's
            name.
    """
    settings, store, environment = _lake()
    settings = settings.of_project(project_dir)
    key = run_key(dag_id, run_id)
    try:
        # an invalid selection is refused here, before a process or an ECS task is started to evaluate it
        selection = " ".join(selectors(select))
        project = Project.of(settings)
        attempted = [dag_id, run_id, str(attempt), origin]
        nodes = selected(settings, project, selection, attempted) if selection else None
        run = pins.pin(
            store,
            environment,
            key,
            attempt,
            project.contracts,
            project.hash,
            select=selection,
            nodes=nodes,
            full_refresh=full_refresh,
            code_version=code_version(settings),
            origin=origin,
            project=project.identity,
            project_dir=str(settings.dbt_project_dir),
            tables=project.tables,
            project_id=project.id,
            dbt_name=project.name,
        )
    except BuscoError as error:
        raise _failed(error) from error
    deliveries = sum(version.files for version in run.pin.bronze.values())
    rows = sum(version.rows for version in run.pin.bronze.values())
    log.info("pinned run=%s epoch=%s base=%s deliveries=%s rows=%s", key, run.pin.epoch, run.pin.base, deliveries, rows)
    if project.contracts and not deliveries:
        log.warning(
            "The lake is empty: nothing has been ingested yet, so all tables of this run will be empty too. "
            "Ingest data with `busco ingest PATH`; `busco sample --out FOLDER` generates sample data. In Docker "
            "Compose, run `docker compose exec local-aws busco …`. Then trigger the DAG again."
        )
    return key


def publish(dag_id: str, run_id: str, who: str) -> str:
    """Publishes the run's versions as the live release, and returns the release's id.

    Raises:
        AirflowSkipException: publishing is on hold, or the run was superseded or rolled back.
        AirflowFailException: publishing was refused. The message states which task to clear or, if the tables that are
            live under this project's name may belong to another project, both possible fixes (`busco.lake.owners`).
    """
    settings, store, environment = _lake(publishes=True)
    try:
        run = open_run(store, environment, run_key(dag_id, run_id))
        manifest = store.get(f"{run.docs}manifest.json")
        if manifest is None:
            raise BuscoError("the run has no docs yet", "clear the docs task")
        audit = Project(json.loads(manifest.body)).audit()
        release = releases.publish(run, audit, who, run.docs, say=lambda line: log.info("%s", line))
    except releases.Skipped as skipped:
        log.info("not published: %s", skipped)
        if isinstance(skipped, releases.OnHold):
            alerts.held_run(settings, dag_id, run_id, str(skipped))
        raise AirflowSkipException(str(skipped)) from skipped
    except BuscoError as error:
        raise _failed(error) from error
    log.info("published release=%s tables=%s built=%s", release.release, len(release.tables), len(release.built))
    if settings.execution != "local":
        log.info("run=%s %s", run.name, run_cost(settings, run))
    return release.release


def show() -> None:
    """Updates Glue and the docs page to show the live release.

    Raises:
        AirflowSkipException: the environment is not prod, or nothing is published yet.
        AirflowFailException: a Glue database or a table's metadata is missing.
    """
    settings, store, environment = _lake(publishes=True)
    if environment.environment != "prod":
        raise AirflowSkipException(f"Glue only shows prod, not {environment.environment}")
    try:
        shown = _catalog(settings).sync(store, environment)
    except BuscoError as error:
        raise _failed(error) from error
    if shown is None:
        raise AirflowSkipException("nothing is published yet")
    log.info(
        "shown release=%s created=%s updated=%s deleted=%s unchanged=%s",
        shown.release,
        len(shown.created),
        len(shown.updated),
        len(shown.deleted),
        len(shown.unchanged),
    )


def check_freshness() -> None:
    """Logs the sources without a recent delivery, according to their `freshness` in dbt.

    Raises:
        AirflowSkipException: no source has a `freshness`.
        AirflowException: a source has had no delivery for longer than `error_after`.
    """
    settings, store, _ = _lake()
    limits: dict[str, Freshness] = {}
    contracts: dict[str, Contract] = {}
    for one in settings.of_all_projects():
        project = Project.of(one)
        for table, limit in project.freshness.items():
            limits[table] = limit.with_stricter(limits.get(table))
        contracts |= {contract.name: contract for contract in project.contracts}
    if not limits:
        raise AirflowSkipException("no source has a `freshness`")
    late = late_tables(store, contracts.values(), limits, utc_now())
    for found in late:
        log.log(logging.ERROR if found.severity == "error" else logging.WARNING, "%s", found.text)
    if errors := [found.text for found in late if found.severity == "error"]:
        raise AirflowException(
            "\n".join(errors) + "\nAsk the producers; if their objects have arrived, see: busco events status"
        )
    log.info("checked sources=%s late=%s", len(limits), len(late))


def check() -> None:
    """Compares the lake and Glue with the live release and the kept ones, and logs all differences (G4).

    Raises:
        AirflowSkipException: nothing is published yet.
        AirflowException: there are differences. The task is retried, since a release that has just gone live may not be
            shown in Glue yet.
        AirflowFailException: Airflow is not allowed to assume the publisher role, or a Glue database is missing.
    """
    report = _compared(repair.check)
    if report.findings:
        named = [finding.lines()[0] for finding in report.findings[:_NAMED_FINDINGS]]
        if len(named) < len(report.findings):
            named.append(f"and {len(report.findings) - len(named)} more")
        listed = "\n".join(named)
        raise AirflowException(f"{count(len(report.findings), 'difference')} found; {REPAIR}\n{listed}")


def repair_drift(who: str) -> int:
    """Repairs differences from the live release and the kept ones, logs each repair, and returns the number of repairs.

    Raises:
        AirflowSkipException: nothing is published yet.
        AirflowFailException: some differences could not be repaired, or one of the reasons listed for `check` applies.
    """

    def say(finding: Finding, done: str) -> None:
        log.info("%s\n  %s", finding.lines()[0], done)

    # Airflow's environment has no Iceberg library.
    report = _compared(lambda store, environment, shown: repair.repair(store, environment, shown, who, False, say))
    if report.findings:
        left = count(len(report.findings), "difference")
        raise AirflowFailException(f"{left} left; the log states what to do about each of them")
    return len(report.repaired)


def _compared(compare: Callable[[ObjectStore, EnvironmentLayout, Catalog | None], repair.Report]) -> repair.Report:
    """Returns the report of a check or repair, after logging its findings."""
    settings, store, environment = _lake(publishes=True)
    try:
        report = compare(store, environment, _catalog(settings) if environment.environment == "prod" else None)
    except BuscoError as error:
        raise _failed(error) from error
    if not report.release and not report.findings:
        raise AirflowSkipException("nothing is published yet")
    for finding in report.findings:
        log.error("%s", "\n".join(finding.lines()))
    for name in report.unknown:
        log.warning("the Glue table %s does not belong to any release; it is left alone", name)
    log.info("compared releases=%s objects=%s tables=%s", report.releases, report.objects, report.tables)
    return report


def check_notification() -> None:
    """Checks that the landing bucket notifies the queue of all new objects, and logs how.

    Raises:
        AirflowSkipException: no queue is configured.
        AirflowFailException: the bucket does not notify the queue, or Airflow's role is not allowed to see that.
    """
    from busco.orchestration import events

    settings = get_settings()
    if not settings.events_queue:
        raise AirflowSkipException("BUSCO_EVENTS_QUEUE is not set: new objects in the landing bucket start nothing")
    try:
        events.events_queue(settings)  # the other settings that this needs
        s3, sqs = client("s3", settings), client("sqs", settings)
        log.info("%s", attach.check(s3, sqs, settings.landing_bucket, settings.events_queue))
    except BuscoError as error:
        raise _failed(error) from error
    except ClientError as error:
        if error.response["Error"]["Code"] not in DENIED:
            raise
        raise _failed(
            BuscoError(
                f"Airflow's role is not allowed to call {error.operation_name}, so nobody would notice if the landing "
                "bucket did not notify the queue any more",
                "attach EventsPolicy in deploy/aws/events.yaml to it (EventsPolicyArn of ecs.yaml)",
            )
        ) from error


def live_release() -> str:
    """Logs the release that readers see, and returns its id.

    Raises:
        AirflowSkipException: nothing is published yet.
    """
    _, store, environment = _lake()
    live = releases.read_live(store, environment)
    if live is None:
        raise AirflowSkipException("nothing is published yet")
    release = live.release
    log.info("live release=%s run=%s tables=%s", release.release, release.run, len(release.tables))
    return release.release


def rollback(release: str, reason: str, who: str) -> str:
    """Rolls back to an older release, puts publishing on hold, and returns the new release's id.

    Raises:
        AirflowFailException: the release does not exist, or no reason was given.
    """
    _, store, environment = _lake(publishes=True)
    try:
        made = releases.rollback(store, environment, release.strip(), who, reason)
    except BuscoError as error:
        raise _failed(error) from error
    log.info("rolled back release=%s content_of=%s; publishing is on hold", made.release, made.rolled_back_to)
    return made.release


def resume(context: Any) -> list[str]:
    """Lifts the hold on publishing, and returns the runs that were skipped while the hold was in effect.

    It is safe to repeat: if an earlier try of the task lifted the hold and died, the next try returns the same runs. If
    there is no hold, the task does nothing and succeeds, so that the DAG still starts a new run.

    Raises:
        AirflowFailException: another hold was set in the meantime; this DAG run does not lift that one.
    """
    _, store, environment = _lake(publishes=True)
    run = context["dag_run"]
    try:
        hold = releases.resume(store, environment, f"{run.dag_id}/{run.run_id}")
    except BuscoError as error:
        raise _failed(error) from error
    if hold is None:
        log.info("there is no hold")
        return []
    by = printable(f"{hold.who} ({hold.reason})")
    log.info("the hold set by %s was lifted; runs skipped in the meantime: %s", by, list(hold.skipped))
    return list(hold.skipped)


def reconcile() -> None:
    """Ingests everything in the landing bucket that was never ingested, and logs what became of each object.

    Raises:
        AirflowFailException: some objects could not be ingested, or no queue is configured.
    """
    from busco.orchestration import events

    try:
        done = events.reconcile(get_settings(), lambda line: log.info("%s", printable(line)), _log_problem)
    except BuscoError as error:
        raise _failed(error) from error
    if not done:
        raise AirflowFailException("some objects could not be ingested: see the messages above; then clear this task")


def replay_dead_letters() -> int:
    """Sends all dead letters to the queue again, and returns their number.

    Raises:
        AirflowFailException: no queue is configured.
    """
    from busco.orchestration import events

    try:
        queue = events.events_queue(get_settings())
    except BuscoError as error:
        raise _failed(error) from error
    found = list(queue.dead(hidden=60))
    for one in found:
        queue.replay(one)
        log.info("sent again: %s (%s)", one.id, printable(one.reason))
    return len(found)


def _log_problem(problem: str) -> None:
    if problem:
        log.warning("%s", printable(problem))


def _lake(publishes: bool = False) -> tuple[Settings, ObjectStore, EnvironmentLayout]:
    """Opens the configured lake, with the publisher role if `publishes` is set."""
    settings = get_settings()
    try:
        require_lake(settings)
        s3 = publisher_client("s3", settings) if publishes else client("s3", settings)
    except BuscoError as error:
        raise _failed(error) from error
    return settings, ObjectStore(s3, settings.lake_bucket), EnvironmentLayout(settings.environment)


def _catalog(settings: Settings) -> Catalog:
    """Returns the Glue catalog, accessed with the publisher role."""
    api = publisher_client("glue", settings, **glue.client_options(settings.glue_calls))
    return Catalog(api, settings.database, LAYERS, settings.glue_calls)


def _failed(error: BuscoError) -> AirflowFailException:
    """Logs the error, and returns the exception that fails the task; Airflow itself would log a traceback first."""
    log.error("%s", error)
    return AirflowFailException(str(error))
