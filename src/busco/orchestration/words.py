"""The words of a failure: which tables stay stale because of it, where to look, what the run has cost."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import quote

from busco.project import Project

# -- what stays stale -------------------------------------------------------------------------------------------------


def stale_tables(project: Project, failed_nodes: Iterable[str]) -> tuple[str, ...]:
    """The gold tables whose new version is not published because of what has failed, sorted.

    These are failed models' own tables, those that a failed test reads, and all that is made from either.

    Args:
        failed_nodes: unique ids of models, seeds, tests and unit tests; what the project doesn't have is left out.
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


# -- where to look ----------------------------------------------------------------------------------------------------


def log_stream_url(region: str, group: str, stream: str) -> str:
    """CloudWatch's page of a log stream.

    The console keeps names in the URL's fragment quoted twice, with `$` for the second per cent sign: `/` is `$252F`.
    """

    def twice(name: str) -> str:
        return quote(quote(name, safe=""), safe="").replace("%", "$")

    path = f"logsV2:log-groups/log-group/{twice(group)}/log-events/{twice(stream)}"
    return f"{_console(region)}/cloudwatch/home?region={region}#{path}"


def ecs_task_url(region: str, cluster: str, task_id: str) -> str:
    """ECS's page of a task; cluster and task by name or ARN."""
    cluster, task_id = (quote(name.rsplit("/", 1)[-1], safe="") for name in (cluster, task_id))
    return f"{_console(region)}/ecs/v2/clusters/{cluster}/tasks/{task_id}/configuration?region={region}"


def athena_table_url(region: str, database: str, table: str, workgroup: str) -> str:
    """Athena's query editor, with the table in its address.

    AWS documents no link to a table in it, and may show the editor alone; `glue_table_url` is sure to show the table.
    """
    named = "&".join(
        f"{key}={quote(value, safe='')}"
        for key, value in (("workgroup", workgroup), ("database", database), ("table", table))
    )
    return f"{_console(region)}/athena/home?region={region}#/query-editor?{named}"


def glue_table_url(region: str, database: str, table: str) -> str:
    """Glue's page of a table: columns, location, and a button that queries it in Athena."""
    path = f"v2/data-catalog/tables/view/{quote(table, safe='')}?database={quote(database, safe='')}"
    return f"{_console(region)}/glue/home?region={region}#/{path}"


def _console(region: str) -> str:
    """The console of the partition that a region belongs to."""
    if region.startswith("cn-"):
        return f"https://{region}.console.amazonaws.cn"
    if region.startswith("us-gov-"):
        return f"https://{region}.console.amazonaws-us-gov.com"
    return f"https://{region}.console.aws.amazon.com"


# -- what it costs ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """What a task, or several, used and about cost."""

    vcpu_seconds: float
    gb_seconds: float
    price: float

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.vcpu_seconds + other.vcpu_seconds, self.gb_seconds + other.gb_seconds, self.price + other.price
        )


def cost(cpu_units: int, memory_mib: int, seconds: float, price_vcpu_hour: float, price_gb_hour: float) -> Cost:
    """What a Fargate task used and about cost.

    Fargate bills from the image's pull to the task's end, per second, rounded up, one minute at least (AWS Fargate
    Pricing, "Pricing details"). Disk beyond the 20 GB that come with a task is not in it.

    Args:
        cpu_units: the task's `cpu`, 1024 to a vCPU.
        memory_mib: the task's `memory` in MiB, 1024 to what Fargate calls a GB.
        seconds: from the start of the pull (`pullStartedAt`) to `stoppedAt`; none for a task that never got so far.
    """
    billed = max(60, math.ceil(seconds)) if seconds > 0 else 0
    vcpu, gb = cpu_units / 1024 * billed, memory_mib / 1024 * billed
    return Cost(vcpu, gb, vcpu / 3600 * price_vcpu_hour + gb / 3600 * price_gb_hour)
