"""Defines the extra links of model, test and docs tasks in Airflow's UI: log stream, ECS task, Athena table, dbt docs.

Airflow requests each link's URL whenever a user views a task, so the URL must be cheap to compute. The URL points to a
page of `busco.orchestration.web`. The page looks up the task's runner when a user opens the link, which also works
while the task is running.
"""

from __future__ import annotations

from typing import ClassVar
from urllib.parse import urlencode

import attr
from airflow.configuration import conf
from airflow.models.baseoperator import BaseOperator
from airflow.models.baseoperatorlink import BaseOperatorLink
from airflow.models.taskinstancekey import TaskInstanceKey


@attr.s(auto_attribs=True)
class TaskLink(BaseOperatorLink):
    """A link to a page about one try of a task.

    A serialized DAG stores the link's class and attributes. The webserver recreates the link from them if a plugin
    registers the class.
    """

    page: ClassVar[str]

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:  # noqa: ARG002 (Airflow's signature)
        return page_url(self.page, ti_key)


@attr.s(auto_attribs=True)
class LogStream(TaskLink):
    """A link to the output of the task's runner."""

    name: ClassVar[str] = "log stream"
    page: ClassVar[str] = "log_stream"


@attr.s(auto_attribs=True)
class EcsTaskLink(TaskLink):
    """A link to the ECS task in which the task's runner runs."""

    name: ClassVar[str] = "ECS task"
    page: ClassVar[str] = "ecs_task"


@attr.s(auto_attribs=True)
class AthenaTable(TaskLink):
    """A link to the table that the task builds or tests, in Athena; `table` is `<layer>.<name>`."""

    name: ClassVar[str] = "Athena table"
    page: ClassVar[str] = "athena_table"
    table: str = ""


@attr.s(auto_attribs=True)
class DbtDocs(TaskLink):
    """A link to the page of the task's model or seed in the project's dbt docs."""

    name: ClassVar[str] = "dbt docs"
    page: ClassVar[str] = "dbt_docs"
    unique_id: str = ""
    project: str = ""


def task_links(table: str, unique_id: str, project: str) -> list[BaseOperatorLink]:
    """Returns a task's links.

    Args:
        table: the task's table, or '' if the task has none.
        unique_id: the unique id of the task's model or seed, or '' if the task has none.
        project: the dbt project whose graph the task belongs to.
    """
    links: list[BaseOperatorLink] = [LogStream(), EcsTaskLink()]
    if table:
        links.append(AthenaTable(table=table))
    if unique_id:
        links.append(DbtDocs(unique_id=unique_id, project=project))
    return links


def page_url(page: str, ti_key: TaskInstanceKey) -> str:
    """Returns the URL of a page for a try of a task; Airflow's UI requires an absolute URL."""
    about = {
        "dag_id": ti_key.dag_id,
        "dag_run_id": ti_key.run_id,
        "task_id": ti_key.task_id,
        "try_number": ti_key.try_number,
    }
    return f"{conf.get('webserver', 'base_url').rstrip('/')}/busco/{page}?{urlencode(about)}"
