"""The extra links of model, test and docs tasks: log stream, ECS task, Athena table, dbt docs.

Airflow requests each link's URL whenever a user views a task, so it must be cheap to compute. It points to a page of
`busco.orchestration.web`, which looks up the task's runner only when it is opened, even while the task is running.
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
    """A page about one try of a task.

    A serialized DAG stores the link's class and attributes. The webserver recreates the link from these if its plugin
    registers the class.
    """

    page: ClassVar[str]

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:  # noqa: ARG002 (Airflow's signature)
        return page_url(self.page, ti_key)


@attr.s(auto_attribs=True)
class LogStream(TaskLink):
    """What the task's runner prints."""

    name: ClassVar[str] = "log stream"
    page: ClassVar[str] = "log_stream"


@attr.s(auto_attribs=True)
class EcsTaskLink(TaskLink):
    """The ECS task in which the task's runner runs."""

    name: ClassVar[str] = "ECS task"
    page: ClassVar[str] = "ecs_task"


@attr.s(auto_attribs=True)
class AthenaTable(TaskLink):
    """The table that the task builds or tests, `<layer>.<name>`, as it appears in Athena."""

    name: ClassVar[str] = "Athena table"
    page: ClassVar[str] = "athena_table"
    table: str = ""


@attr.s(auto_attribs=True)
class DbtDocs(TaskLink):
    """The page of the task's model or seed in its project's dbt docs."""

    name: ClassVar[str] = "dbt docs"
    page: ClassVar[str] = "dbt_docs"
    unique_id: str = ""
    project: str = ""


def task_links(table: str, unique_id: str, project: str) -> list[BaseOperatorLink]:
    """Returns a task's links.

    Args:
        table: the task's table, or '' if it has none.
        unique_id: the unique id of the task's model or seed, or '' if it has none.
        project: the dbt project to whose graph the task belongs.
    """
    links: list[BaseOperatorLink] = [LogStream(), EcsTaskLink()]
    if table:
        links.append(AthenaTable(table=table))
    if unique_id:
        links.append(DbtDocs(unique_id=unique_id, project=project))
    return links


def page_url(page: str, ti_key: TaskInstanceKey) -> str:
    """Returns a page's URL, which must be absolute for Airflow's UI."""
    about = {
        "dag_id": ti_key.dag_id,
        "dag_run_id": ti_key.run_id,
        "task_id": ti_key.task_id,
        "try_number": ti_key.try_number,
    }
    return f"{conf.get('webserver', 'base_url').rstrip('/')}/busco/{page}?{urlencode(about)}"
