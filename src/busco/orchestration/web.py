"""The Airflow plugin that serves the pages behind tasks' links to users who can read the tasks of the DAG."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from airflow.auth.managers.models.resource_details import DagAccessEntity, DagDetails
from airflow.models.taskinstance import TaskInstance
from airflow.plugins_manager import AirflowPlugin
from airflow.utils.airflow_flask_app import get_airflow_app
from airflow.utils.session import create_session
from airflow.www.auth import has_access_dag, has_access_view
from airflow.www.extensions.init_auth_manager import get_auth_manager
from airflow.www.views import AirflowBaseView
from botocore.exceptions import BotoCoreError, ClientError
from flask import Response, abort, redirect, request, url_for
from flask_appbuilder import expose

from busco.errors import BuscoError
from busco.orchestration.access import EVENTS_MENU, SITE_MENU
from busco.orchestration.links import AthenaTable, DbtDocs, EcsTaskLink, LogStream
from busco.orchestration.site import DocsSite, projects_of, readable_projects
from busco.settings import Settings, get_settings, require_lake

# dbt docs contain anything that a project's authors wrote, including scripts, so they run in a sandbox without cookies.
_APART = {
    "Content-Security-Policy": "sandbox allow-scripts allow-popups allow-downloads; frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
}


class TaskPages(AirflowBaseView):
    """The pages that the links in `links.py` open, each for one try of one task, and the list of dbt docs."""

    default_view = "log_stream"
    route_base = "/busco"
    template_folder = str(Path(__file__).parent / "templates")

    @expose("/log_stream")  # type: ignore[untyped-decorator]
    @has_access_dag("GET", DagAccessEntity.TASK_LOGS)
    def log_stream(self) -> Any:
        from busco.orchestration import pages

        task_try = self._task_try()
        return self._response("log stream", lambda settings: pages.log_page(settings, task_try))

    @expose("/ecs_task")  # type: ignore[untyped-decorator]
    @has_access_dag("GET", DagAccessEntity.TASK_INSTANCE)
    def ecs_task(self) -> Any:
        from busco.orchestration import pages

        task_try = self._task_try()
        return self._response("ECS task", lambda settings: pages.ecs_page(settings, task_try))

    @expose("/athena_table")  # type: ignore[untyped-decorator]
    @has_access_dag("GET", DagAccessEntity.TASK_INSTANCE)
    def athena_table(self) -> Any:
        from busco.orchestration import pages

        link = self._link(AthenaTable)
        return self._response("Athena table", lambda settings: pages.table_page(settings, link.table))

    @expose("/dbt_docs")  # type: ignore[untyped-decorator]
    @has_access_dag("GET", DagAccessEntity.TASK_INSTANCE)
    def dbt_docs(self) -> Any:
        from busco.orchestration import pages

        link = self._link(DbtDocs)

        def lead(settings: Settings) -> pages.Page | str:
            found = pages.docs_fragment(settings, link.project, link.unique_id)
            if isinstance(found, pages.Page):
                return found
            page = url_for("TaskPages.dbt_docs_page", dag_id=request.args["dag_id"], project=link.project)
            return f"{page}{found}"

        return self._response("dbt docs", lead)

    @expose("/docs")  # type: ignore[untyped-decorator]
    @has_access_view()
    def docs(self) -> Any:
        """Lists the docs of the projects whose DAGs the user can read; if there is only one project, shows its docs."""
        from busco.orchestration import pages

        found = {
            project: url_for("TaskPages.dbt_docs_page", dag_id=dag_id, project=project)
            for project, dag_id in readable_projects().items()
        }
        described = pages.described_projects(require_lake(get_settings()))
        shown = {project: page for project, page in found.items() if project in described}
        return self.render_template("busco_docs.html", projects=shown)  # type: ignore[no-untyped-call]

    @expose("/dbt_docs_page")  # type: ignore[untyped-decorator]
    @has_access_dag("GET", DagAccessEntity.TASK_INSTANCE)
    def dbt_docs_page(self) -> Any:
        from busco.orchestration import pages

        project = request.args.get("project", "")
        if project not in projects_of(get_airflow_app().dag_bag.get_dag(request.args.get("dag_id", ""))):
            abort(404)
        html = pages.docs_html(require_lake(get_settings()), project)
        if html is None:
            abort(404)
        return Response(html, mimetype="text/html", headers=_APART)

    @expose("/events")  # type: ignore[untyped-decorator]
    @has_access_view()
    def events(self) -> Any:
        """Shows the state of the events to users who can read the DAG `landing`."""
        from busco.orchestration import events_status, pages

        manager = get_auth_manager()
        if not manager.is_authorized_dag(method="GET", details=DagDetails(id="landing")):
            abort(403)
        return self._response("New objects", lambda settings: pages.events_page(events_status.status(settings)))

    # -- the task -----------------------------------------------------------------------------------------------------

    def _task(self) -> Any:
        """Returns the requested task from the serialized DAG."""
        dag = get_airflow_app().dag_bag.get_dag(request.args.get("dag_id", ""))
        task_id = request.args.get("task_id", "")
        if dag is None or not dag.has_task(task_id):
            abort(404)
        return dag.get_task(task_id)

    def _link(self, kind: type[Any]) -> Any:
        """Returns the task's link of type `kind` from the DAG, so that the request can't choose the link's target."""
        found = next((link for link in self._task().operator_extra_links if isinstance(link, kind)), None)
        return found or abort(404)

    def _task_try(self) -> Any:
        from busco.orchestration.pages import TaskTry

        start = self._task().start_trigger_args
        arguments = start.trigger_kwargs if start is not None else None
        if not arguments or "nodes" not in arguments:
            abort(404)
        about = {name: request.args.get(name, "") for name in ("dag_id", "task_id")}
        with create_session() as session:
            row = (
                session.query(TaskInstance.state, TaskInstance.try_number)
                .filter_by(**about, run_id=request.args.get("dag_run_id", ""), map_index=-1)
                .one_or_none()
            )
        if row is None:
            abort(404)
        newest = int(row.try_number)
        attempt = request.args.get("try_number", newest, type=int)
        return TaskTry(
            dag_id=about["dag_id"],
            run_id=request.args["dag_run_id"],
            task=arguments["task"],
            nodes=tuple(arguments["nodes"]),
            label=arguments["label"],
            attempt=attempt,
            # an earlier try has ended, whatever the task's state is now
            state=str(row.state or "") if attempt >= newest else "failed",
        )

    # -- the response -------------------------------------------------------------------------------------------------

    def _response(self, title: str, answer_of: Callable[[Settings], Any]) -> Any:
        """Redirects to the URL, or renders the page, that `answer_of` returns. Errors are shown as pages."""
        from busco.orchestration.pages import Page

        try:
            answer = answer_of(require_lake(get_settings()))
        except BuscoError as error:
            answer = Page(title, tuple(part for part in (error.message, error.hint) if part))
        except (ClientError, BotoCoreError) as error:
            answer = Page(title, (f"The request to AWS failed: {error}",))
        if isinstance(answer, str):
            return redirect(answer)
        return self.render_template("busco_task.html", page=answer, title=answer.title)  # type: ignore[no-untyped-call]


class BuscoPlugin(AirflowPlugin):
    """Registers the pages, and the link classes that the webserver restores from serialized DAGs."""

    name = "busco"
    appbuilder_views = [{"view": TaskPages()}, {"view": DocsSite()}]  # noqa: RUF012 (Airflow's convention)
    appbuilder_menu_items = [  # noqa: RUF012
        {"name": EVENTS_MENU, "category": "Browse", "href": "/busco/events"},
        {"name": SITE_MENU, "href": "/catalog/"},
    ]
    operator_extra_links = [LogStream(), EcsTaskLink(), AthenaTable(), DbtDocs()]  # noqa: RUF012
