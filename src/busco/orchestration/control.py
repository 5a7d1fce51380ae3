"""The tasks around the graph: pin, publish, Glue, and what on-call does by a button. Called by Airflow's workers."""

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
    """Pins the run; its epoch is the task's try number (R1). Gives the run's key.

    Args:
        project_dir: the dbt project's folder, below the platform's home; empty for the platform's own.

    Raises:
        AirflowFailException: the selection matches nothing or has options in it, deliveries are outdated, nothing was
            ever parsed, or another project has published a table of the same name or uses this one's name.
    """
    settings, store, environment = _lake()
    settings = settings.of_project(project_dir)
    key = run_key(dag_id, run_id)
    try:
        # refused here, before a process or an ECS task is started for it
        wanted = " ".join(selectors(select))
        project = Project.of(settings)
        attempted = [dag_id, run_id, str(attempt), origin]
        nodes = selected(settings, project, wanted, attempted) if wanted else None
        run = pins.pin(
            store,
            environment,
            key,
            attempt,
            project.contracts,
            project.hash,
            select=wanted,
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
            "The lake is empty: nothing was ever ingested, so that all tables of this run are built from no rows. "
            "Bring data with `busco ingest PATH`, after `busco sample --out FOLDER` for made-up data; in Docker "
            "Compose with `docker compose exec local-aws busco …`. Then trigger the DAG again."
        )
    return key


def publish(dag_id: str, run_id: str, who: str) -> str:
    """Makes the run's versions the live release; gives its id.

    Raises:
        AirflowSkipException: on hold, superseded, or rolled back since.
        AirflowFailException: refused, with what to clear, or with both ways out where the project may be another than
            the live one of its name (`busco.lake.owners`).
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
    """Makes Glue and the docs page show the live release.

    Raises:
        AirflowFailException: a Glue database is missing.
    """
    settings, store, environment = _lake(publishes=True)
    if environment.environment != "prod":
        raise AirflowSkipException(f"Glue shows prod only, not {environment.environment}")
    try:
        shown = glue.sync(publisher_client("glue", settings), store, environment, settings.database, LAYERS)
    except BuscoError as error:
        raise _failed(error) from error
    if shown is None:
        raise AirflowSkipException("nothing was ever published")
    log.info(
        "shown release=%s created=%s updated=%s deleted=%s unchanged=%s",
        shown.release,
        len(shown.created),
        len(shown.updated),
        len(shown.deleted),
        len(shown.unchanged),
    )


def live_release() -> str:
    """The id of the release that readers see, which is logged with its tables.

    Raises:
        AirflowSkipException: nothing was ever published.
    """
    _, store, environment = _lake()
    live = releases.read_live(store, environment)
    if live is None:
        raise AirflowSkipException("nothing was ever published")
    release = live.release
    log.info("live release=%s run=%s tables=%s", release.release, release.run, len(release.tables))
    return release.release


def rollback(release: str, reason: str, who: str) -> str:
    """Rolls back to an older release and holds publishing; gives the new release's id.

    Raises:
        AirflowFailException: no such release, or no reason.
    """
    _, store, environment = _lake(publishes=True)
    try:
        made = releases.rollback(store, environment, release.strip(), who, reason)
    except BuscoError as error:
        raise _failed(error) from error
    log.info("rolled back release=%s content_of=%s; publishing is on hold", made.release, made.rolled_back_to)
    return made.release


def resume(context: Any) -> list[str]:
    """Lifts the hold; returns the runs that were skipped while it stood.

    Safe to repeat: a task whose earlier try lifted the hold and died returns the same runs. Without a hold it does
    nothing, and the task is green, so that the new run is started.

    Raises:
        AirflowFailException: another hold was set since; this DAG run leaves it alone.
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
    log.info("resumed; the hold was of %s; skipped meanwhile: %s", by, list(hold.skipped))
    return list(hold.skipped)


def _lake(publishes: bool = False) -> tuple[Settings, ObjectStore, EnvironmentLayout]:
    """The lake of this process's settings; as the role that publishes, where that is what the caller does."""
    settings = get_settings()
    try:
        require_lake(settings)
        s3 = publisher_client("s3", settings) if publishes else client("s3", settings)
    except BuscoError as error:
        raise _failed(error) from error
    return settings, ObjectStore(s3, settings.lake_bucket), EnvironmentLayout(settings.environment)


def _failed(error: BuscoError) -> AirflowFailException:
    """The end of a task, after its log has said why in words: Airflow begins with a traceback."""
    log.error("%s", error)
    return AirflowFailException(str(error))
