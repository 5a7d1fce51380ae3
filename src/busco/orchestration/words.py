"""Provides the details of a failure report: the tables that stay stale, links to logs and consoles, and costs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import quote

from busco.project import Project

# -- stale tables -----------------------------------------------------------------------------------------------------


def stale_tables(project: Project, failed_nodes: Iterable[str]) -> tuple[str, ...]:
    """Returns, in sorted order, the gold tables whose new versions are not published because of failed nodes.

    These are the failed models' own tables, the tables that failed tests read, and everything downstream of them.

    Args:
        failed_nodes: unique ids of models, seeds, tests and unit tests; ids that the project lacks are ignored.
    """
    start: set[str] = set()
    for node in failed_nodes:
        if node in project.unit_tests:
            start.add(project.unit_tests[node])
        elif node in project.tests:
            start |= set(project.tests[node]["depends_on"]["nodes"])
        else:
            start.add(node)
    return tuple(
        sorted(
            table
            for table, uid in project.tables.items()
            if table.startswith("gold.") and (uid in start or project.ancestors[uid] & start)
        )
    )


# -- links ------------------------------------------------------------------------------------------------------------


def log_stream_url(region: str, group: str, stream: str) -> str:
    """Returns the CloudWatch console URL of a log stream.

    The console expects names in the URL fragment to be percent-encoded twice, with the `%` of the second encoding
    written as `$`: `/` becomes `$252F`.
    """

    def twice(name: str) -> str:
        return quote(quote(name, safe=""), safe="").replace("%", "$")

    path = f"logsV2:log-groups/log-group/{twice(group)}/log-events/{twice(stream)}"
    return f"{_console(region)}/cloudwatch/home?region={region}#{path}"


def ecs_task_url(region: str, cluster: str, task_id: str) -> str:
    """Returns the ECS console URL of a task; cluster and task can be names or ARNs."""
    cluster, task_id = (quote(name.rsplit("/", 1)[-1], safe="") for name in (cluster, task_id))
    return f"{_console(region)}/ecs/v2/clusters/{cluster}/tasks/{task_id}/configuration?region={region}"


def athena_table_url(region: str, database: str, table: str, workgroup: str) -> str:
    """Returns the URL of Athena's query editor, with the table as a parameter.

    AWS does not document such links, so the editor may open without the table; the Glue console always shows it.
    """
    named = "&".join(
        f"{key}={quote(value, safe='')}"
        for key, value in (("workgroup", workgroup), ("database", database), ("table", table))
    )
    return f"{_console(region)}/athena/home?region={region}#/query-editor?{named}"


def glue_table_url(region: str, database: str, table: str) -> str:
    """Returns the Glue console URL of a table's page, with its columns, its location and a button to query it."""
    path = f"v2/data-catalog/tables/view/{quote(table, safe='')}?database={quote(database, safe='')}"
    return f"{_console(region)}/glue/home?region={region}#/{path}"


def _console(region: str) -> str:
    """Returns the base URL of the AWS console for a region, which depends on the region's partition."""
    if region.startswith("cn-"):
        return f"https://{region}.console.amazonaws.cn"
    if region.startswith("us-gov-"):
        return f"https://{region}.console.amazonaws-us-gov.com"
    return f"https://{region}.console.aws.amazon.com"


# -- cost -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """The usage and approximate cost of one or more tasks."""

    vcpu_seconds: float
    gb_seconds: float
    price: float

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.vcpu_seconds + other.vcpu_seconds, self.gb_seconds + other.gb_seconds, self.price + other.price
        )


def cost(cpu_units: int, memory_mib: int, seconds: float, price_vcpu_hour: float, price_gb_hour: float) -> Cost:
    """Returns the usage and approximate cost of a Fargate task.

    Fargate bills per second, rounded up, from the start of the image pull until the task ends, with a minimum of one
    minute (AWS Fargate Pricing, "Pricing details"). Storage beyond the included 20 GB is not counted.

    Args:
        cpu_units: the task's `cpu`; 1024 units are one vCPU.
        memory_mib: the task's `memory` in MiB; Fargate calls 1024 MiB a GB.
        seconds: the time from `pullStartedAt` to `stoppedAt`; 0 for a task that never started to pull its image.
    """
    billed = max(60, math.ceil(seconds)) if seconds > 0 else 0
    vcpu, gb = cpu_units / 1024 * billed, memory_mib / 1024 * billed
    return Cost(vcpu, gb, vcpu / 3600 * price_vcpu_hour + gb / 3600 * price_gb_hour)
