"""Serves the site for data consumers at `/catalog/`, in Airflow's webserver and with its logins.

A page of the site is a shell that contains nothing from a dbt project, and a frame in a sandbox without cookies that
shows everything. The shell fetches the data with the user's session and hands it to the frame
(docs/decisions/042-pages-for-data-consumers.md). Each request for data is checked against the DAGs that the user can
read.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from airflow.auth.managers.models.resource_details import DagAccessEntity, DagDetails
from airflow.models.dagrun import DagRun
from airflow.utils.airflow_flask_app import get_airflow_app
from airflow.utils.session import create_session
from airflow.www.auth import has_access_view
from airflow.www.extensions.init_auth_manager import get_auth_manager
from airflow.www.views import AirflowBaseView
from botocore.exceptions import BotoCoreError, ClientError
from flask import Response, abort, request, url_for
from flask_appbuilder import expose

from busco.aws import client
from busco.errors import BuscoError
from busco.lake.layout import EnvironmentLayout, run_key
from busco.lake.objects import ObjectStore
from busco.orchestration.links import DbtDocs
from busco.settings import get_settings, require_lake
from busco.site import page
from busco.site.release import Site

# The newest DAG runs among which the run that made a table is looked for.
_DAG_RUNS = 200
# Smaller answers are not worth compressing.
_COMPRESSED = 1024


class DocsSite(AirflowBaseView):
    """The site's pages and its data."""

    default_view = "start"
    route_base = "/catalog"

    @expose("/")  # type: ignore[untyped-decorator]
    def start(self) -> Any:
        return _shell()

    @expose("/<path:path>")  # type: ignore[untyped-decorator]
    def table(self, path: str) -> Any:  # noqa: ARG002
        """Every address of the site is the same shell: the address says what its frame shows."""
        return _shell()

    @expose("/_frame")  # type: ignore[untyped-decorator]
    @has_access_view()
    def frame(self) -> Any:
        return _html(page.frame_html(), page.frame_csp())

    @expose("/_data/<what>")  # type: ignore[untyped-decorator]
    @has_access_view()
    def data(self, what: str) -> Any:
        project, table = request.args.get("project", ""), request.args.get("table", "")
        release = request.args.get("release", "")
        readable = readable_projects()
        answers: dict[str, Callable[[Site], Any]] = {
            "state": lambda site: _with_links(site.state(release), readable, site, release),
            "history": lambda site: site.history(release),
            "site": lambda site: site.index(project, release),
            "table": lambda site: site.content(project, table, release),
        }
        if what not in answers:
            abort(404)
        return _json(answers[what], readable, what in ("state", "history"))

    @expose("/catalog.json")  # type: ignore[untyped-decorator]
    @has_access_view()
    def catalog(self) -> Any:
        return _json(lambda site: site.catalog(), readable_projects(), True)


def readable_projects() -> dict[str, str]:
    """Returns the dbt projects whose DAGs the user can read, with tasks, each with the id of such a DAG."""
    manager = get_auth_manager()
    found: dict[str, str] = {}
    for dag_id in sorted(manager.get_permitted_dag_ids(methods=["GET"], user=manager.get_user())):
        if manager.is_authorized_dag(
            method="GET", access_entity=DagAccessEntity.TASK_INSTANCE, details=DagDetails(id=dag_id)
        ):
            for project in projects_of(get_airflow_app().dag_bag.get_dag(dag_id)):
                found.setdefault(project, dag_id)
    return dict(sorted(found.items()))


def projects_of(dag: Any) -> set[str]:
    """Returns the dbt projects whose graphs a DAG contains, as stated by the DAG itself, not by the request."""
    return {link.project for link in _docs_links(dag).values() if link.project}


def _docs_links(dag: Any) -> dict[str, DbtDocs]:
    """Returns the link to the dbt docs of each of a DAG's tasks that has one."""
    tasks = dag.tasks if dag is not None else ()
    return {task.task_id: link for task in tasks for link in task.operator_extra_links if isinstance(link, DbtDocs)}


def _shell() -> Response:
    """Returns the shell; for a visitor who has not logged in, a page that leads to the login and back."""
    manager = get_auth_manager()
    if not manager.is_logged_in():
        login = manager.get_url_login(next_url=request.url)
        return _html(page.away_html(login), page.away_csp(), 401)
    return _shell_of_user()


@has_access_view()
def _shell_of_user() -> Response:
    html = page.shell_html(url_for("DocsSite.start"), url_for("DocsSite.frame"))
    return _html(html, page.shell_csp())


def _html(html: str, policy: str, status: int = 200) -> Response:
    return _compressed(html.encode(), status, "text/html", {"Content-Security-Policy": policy})


def _json(answer_of: Callable[[Site], Any], readable: Mapping[str, str], is_state: bool) -> Response:
    """Returns data as JSON, compressed, with an ETag. Status 404 means that there is no such data for this user.

    Args:
        is_state: whether the data changes only with the lake's state. Pages look for a new state every few seconds, and
            the ETag is then made from the state, which takes a single request to S3.
    """
    try:
        settings = require_lake(get_settings())
        store = ObjectStore(client("s3", settings), settings.lake_bucket)
        site = Site(store, EnvironmentLayout(settings.environment), frozenset(readable))
        revision = json.dumps([site.revision, request.url, sorted(readable.items())]) if is_state else ""
        if revision and request.headers.get("If-None-Match") == _etag(revision.encode()):
            return Response(status=304, headers=_caching(_etag(revision.encode())))
        found = answer_of(site)
    except BuscoError as error:
        return _problem(error.message, 503)
    except (ClientError, BotoCoreError) as error:
        return _problem(f"The request to AWS failed: {error}", 503)
    if found is None:
        return _problem("There is nothing here, or you do not have permission to read it.", 404)
    body = found if isinstance(found, bytes) else json.dumps(found, separators=(",", ":")).encode()
    etag = _etag(revision.encode() or body)
    if request.headers.get("If-None-Match") == etag:
        return Response(status=304, headers=_caching(etag))
    return _compressed(body, 200, "application/json", _caching(etag))


def _compressed(body: bytes, status: int, kind: str, headers: Mapping[str, str]) -> Response:
    sent = {"Cache-Control": "no-store", **headers, "X-Content-Type-Options": "nosniff"}
    if len(body) > _COMPRESSED and "gzip" in request.headers.get("Accept-Encoding", ""):
        body, sent["Content-Encoding"] = gzip.compress(body, 5), "gzip"
    return Response(body, status, sent, kind)


def _etag(content: bytes) -> str:
    return f'"{hashlib.sha256(content).hexdigest()[:32]}"'


def _caching(etag: str) -> dict[str, str]:
    return {"ETag": etag, "Cache-Control": "private, no-cache", "Vary": "Accept-Encoding, Cookie"}


def _problem(text: str, status: int) -> Response:
    return Response(json.dumps({"error": text}), status, {"Cache-Control": "no-store"}, "application/json")


def _with_links(
    state: dict[str, Any] | None, readable: Mapping[str, str], site: Site, release: str
) -> dict[str, Any] | None:
    """Adds the addresses of dbt docs, and of the DAG and the tasks that made the tables, to a release's state."""
    if state is None:
        return None
    for project, about in state["projects"].items():
        dag_id = readable[project]
        about["dbt_docs"] = url_for("TaskPages.dbt_docs_page", dag_id=dag_id, project=project)
        about["dag"] = url_for("Airflow.grid", dag_id=dag_id)
        tables = site.tables_of(project, release)
        runs = _dag_runs(dag_id)
        about["tasks"] = {}
        for task_id, link in _docs_links(get_airflow_app().dag_bag.get_dag(dag_id)).items():
            table = tables.get(link.unique_id)
            # a model's own tests are a second task, which has the same link
            if link.project == project and table in state["tables"] and not task_id.endswith(".test"):
                # a parameter that is None is left out
                run = runs.get(state["tables"][table]["run"] or "")
                about["tasks"][table] = url_for("Airflow.grid", dag_id=dag_id, task_id=task_id, dag_run_id=run)
    return state


def _dag_runs(dag_id: str) -> dict[str, str]:
    """Returns the ids of a DAG's newest runs, by the names of these runs in the lake."""
    with create_session() as session:
        newest = session.query(DagRun.run_id).filter(DagRun.dag_id == dag_id).order_by(DagRun.execution_date.desc())
        return {run_key(dag_id, run_id): run_id for (run_id,) in newest.limit(_DAG_RUNS)}
