"""The extra links of model, test and docs tasks: log stream, ECS task, Athena table, dbt docs.

Airflow asks for each link's address whenever somebody looks at a task, so that it must cost nothing: it names a page of
`busco.orchestration.web`, which looks where the task's runner is when it is opened, that is while the task runs too.
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

    Serialized DAGs have its class and attributes: the webserver makes it anew from them, if its plugin names the class.
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
    """The ECS task that the task's runner is."""

    name: ClassVar[str] = "ECS task"
    page: ClassVar[str] = "ecs_task"


@attr.s(auto_attribs=True)
class AthenaTable(TaskLink):
    """The table that the task builds or tests, `<layer>.<name>`, as Athena has it."""

    name: ClassVar[str] = "Athena table"
    page: ClassVar[str] = "athena_table"
    table: str = ""


@attr.s(auto_attribs=True)
class DbtDocs(TaskLink):
    """The page of the task's model or seed in dbt's docs of its project."""

    name: ClassVar[str] = "dbt docs"
    page: ClassVar[str] = "dbt_docs"
    unique_id: str = ""
    project: str = ""


def task_links(table: str, unique_id: str, project: str) -> list[BaseOperatorLink]:
    """A task's links.

    Args:
        table: the table that it is about, '' where there is none.
        unique_id: the model or seed that it is about, '' where there is none.
        project: the dbt project whose graph it is of.
    """
    links: list[BaseOperatorLink] = [LogStream(), EcsTaskLink()]
    if table:
        links.append(AthenaTable(table=table))
    if unique_id:
        links.append(DbtDocs(unique_id=unique_id, project=project))
    return links


def page_url(page: str, ti_key: TaskInstanceKey) -> str:
    """The address of a page; a whole one, for Airflow's UI leads to no other."""
    about = {
        "dag_id": ti_key.dag_id,
        "dag_run_id": ti_key.run_id,
        "task_id": ti_key.task_id,
        "try_number": ti_key.try_number,
    }
    return f"{conf.get('webserver', 'base_url').rstrip('/')}/busco/{page}?{urlencode(about)}"
