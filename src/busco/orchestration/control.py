"""The tasks that Airflow's workers run around the dbt graph: pin, publish, Glue, and the operations of on-call."""

from __future__ import annotations

import json
import logging
from typing import Any

from airflow.exceptions import AirflowFailException, AirflowSkipException

from busco.aws import client, publisher_client
from busco.catalog import glue
from busco.environments import code_version
from busco.errors import BuscoError
from busco.lake import pins, releases
from busco.lake.layout import EnvironmentLayout, run_key
from busco.lake.objects import ObjectStore
from busco.lake.runs import open_run
from busco.orchestration.costs import run_cost
from busco.orchestration.selections import selected
from busco.project import Project
from busco.selection import selectors
from busco.settings import LAYERS, Settings, get_settings, require_lake
from busco.text import printable

log = logging.getLogger(__name__)


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
    deliveries = sum(len(version.deliveries) for version in run.pin.bronze.values())
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
        AirflowFailException: publishing was refused. The message states which task to clear. If the tables that are
            live under this project's name may belong to another project, it states both possible fixes
            (`busco.lake.owners`).
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
        AirflowFailException: a Glue database is missing.
    """
    settings, store, environment = _lake(publishes=True)
    if environment.environment != "prod":
        raise AirflowSkipException(f"Glue only shows prod, not {environment.environment}")
    try:
        shown = glue.sync(publisher_client("glue", settings), store, environment, settings.database, LAYERS)
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
    log.info("resumed; the hold was set by %s; runs skipped in the meantime: %s", by, list(hold.skipped))
    return list(hold.skipped)


def _lake(publishes: bool = False) -> tuple[Settings, ObjectStore, EnvironmentLayout]:
    """Opens the configured lake, with the publisher role if `publishes` is set."""
    settings = get_settings()
    try:
        require_lake(settings)
        s3 = publisher_client("s3", settings) if publishes else client("s3", settings)
    except BuscoError as error:
        raise _failed(error) from error
    return settings, ObjectStore(s3, settings.lake_bucket), EnvironmentLayout(settings.environment)


def _failed(error: BuscoError) -> AirflowFailException:
    """Logs the error, and returns the exception that fails the task; Airflow's own log would begin with a traceback."""
    log.error("%s", error)
    return AirflowFailException(str(error))
