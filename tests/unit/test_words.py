"""The explanation of a failure: why a task stopped, which tables stay stale, where to look, and what it cost."""

from __future__ import annotations

from typing import Any

import pytest

from busco.orchestration.stops import stop_reason
from busco.orchestration.words import (
    Cost,
    athena_table_url,
    cost,
    ecs_task_url,
    glue_table_url,
    log_stream_url,
    stale_tables,
)
from busco.project import Project

ECR = "111122223333.dkr.ecr.us-east-1.amazonaws.com/busco-dbt:abc"

# stop code, stopped reason, container's reason, exit code → kind, part of the text, part of the hint, whether it is
# transient
STOPS = {
    "memory": (
        ("EssentialContainerExited", "Essential container in task exited"),
        ("OutOfMemoryError: Container killed due to memory usage", 137),
        ("memory", "ran out of memory (it had 2 GB)", "next larger size", False),
    ),
    "image that is not there": (
        ("TaskFailedToStart", f"CannotPullContainerError: pull image manifest has been retried 1 time(s): "
         f"failed to resolve ref {ECR}: {ECR}: not found"),
        ("", None),
        ("image", "the image does not exist", "push the image", False),
    ),
    "image without permission": (
        ("TaskFailedToStart", "CannotPullContainerError: Error response from daemon: pull access denied for busco, "
         "repository does not exist or may require 'docker login': denied"),
        ("", None),
        ("image", "not allowed to pull the image", "ecr:BatchGetImage", False),
    ),
    "image out of reach": (
        ("TaskFailedToStart", f"CannotPullContainerError: ref pull has been retried 5 time(s): failed to resolve "
         f'reference "{ECR}": failed to do request: Head "https://x": dial tcp 10.0.0.1:443: i/o timeout'),
        ("", None),
        ("network", "registry could not be reached", "NAT gateway", True),
    ),
    "image of another processor": (
        ("TaskFailedToStart", "CannotPullContainerError: image Manifest does not contain descriptor matching platform "
         "'linux/arm64'"),
        ("", None),
        ("image", "not built for the task's CPU architecture", "runtimePlatform", False),
    ),
    "no memory on the instances": (
        ("", "RESOURCE:MEMORY"), ("", None), ("capacity", "no instance in the cluster has room", "smaller size", True),
    ),
    "no capacity": (
        ("", "Capacity is unavailable at this time. Please try again later or in a different availability zone"),
        ("", None),
        ("capacity", "AWS currently has no capacity", "availability zones", True),
    ),
    "quota": (
        ("", "You've reached the limit on the number of vCPUs you can run concurrently"),
        ("", None),
        ("capacity", "limit on Fargate tasks or vCPUs", "BUSCO_MAX_ECS_TASKS", True),
    ),
    "agent": (("", "AGENT"), ("", None), ("capacity", "is disconnected", "replace the instance", True)),
    "role that ECS can't assume": (
        ("", "ECS was unable to assume the role 'arn:aws:iam::111122223333:role/busco-task' that was provided for this "
         "task. Please verify that the role being passed has the proper trust relationship and permissions"),
        ("", None),
        ("role", "does not trust ecs-tasks", "iam:PassRole", False),
    ),
    "role that may not be passed": (
        ("", "User: arn:aws:iam::111122223333:user/airflow is not authorized to perform: iam:PassRole on resource: x"),
        ("", None),
        ("role", "iam:PassRole is not granted", "iam:PassRole", False),
    ),
    "other permission": (
        ("", "User: x is not authorized to perform: ecs:RunTask on resource: y"),
        ("", None),
        ("permission", "not allowed to do this", "ecs.yaml", False),
    ),
    "spot": (
        ("SpotInterruption", "Your Spot Task was interrupted."),
        ("", 143),
        ("spot", "reclaimed the Fargate Spot capacity", "a new runner will take over", True),
    ),
    "a person": (
        ("UserInitiated", "too slow: out of memory soon"),
        ("", 137),
        ("person", "somebody stopped the task: too slow: out of memory soon", "clear the task", False),
    ),
    "host": (
        ("TaskFailedToStart", "Host EC2 (instance i-0abc) terminated."),
        ("", None),
        ("host", "the machine that ran the task is gone", "a new runner", True),
    ),
    "health": (
        ("", "Task failed container health checks"), ("", 137), ("health", "a health check failed", "remove", False),
    ),
    "log group": (
        ("TaskFailedToStart", "ResourceInitializationError: failed to validate logger args: create stream has been "
         "retried 1 times: failed to create Cloudwatch log stream: ResourceNotFoundException: The specified log "
         "group does not exist. : exit status 1"),
        ("", None),
        ("setup", "log group does not exist", "BUSCO_ECS_LOG_GROUP", False),
    ),
    "secret": (
        ("TaskFailedToStart", "ResourceInitializationError: unable to pull secrets or registry auth: execution "
         "resource retrieval failed: unable to retrieve secret from asm: service call has been retried 1 time(s): "
         "failed to fetch secret: AccessDeniedException"),
        ("", None),
        ("permission", "not allowed to read a secret", "secretsmanager:GetSecretValue", False),
    ),
    "network of the set-up": (
        ("TaskFailedToStart", "ResourceInitializationError: unable to pull secrets or registry auth: execution "
         "resource retrieval failed: unable to retrieve ecr registry auth: RequestError: send request failed caused "
         'by: Post "https://api.ecr.us-east-1.amazonaws.com/": dial tcp 1.2.3.4:443: i/o timeout. Please check your '
         "task network configuration."),
        ("", None),
        ("network", "could not reach AWS services", "endpoints", True),
    ),
    "command": (
        ("TaskFailedToStart", "Task failed to start"),
        ('CannotStartContainerError: exec: "busco": executable file not found in $PATH', None),
        ("command", "could not be started", "entry point", False),
    ),
    "killed": (
        ("EssentialContainerExited", "Essential container in task exited"),
        ("", 137),
        ("exit", "killed (signal 9), either by ECS or because it ran out of memory (it had 2 GB)", "larger size", True),
    ),
    "exit code": (
        ("EssentialContainerExited", "Essential container in task exited"),
        ("", 3),
        ("exit", "the container exited with code 3", "log", False),
    ),
    "nothing": (("", ""), ("", None), ("unknown", "ECS gave no reason", "check the ECS task", False)),
}  # fmt: skip


@pytest.mark.parametrize("case", STOPS.values(), ids=STOPS.keys())
def test_the_reason_why_a_task_stopped_is_explained_with_what_to_do(case: Any) -> None:
    (code, reason), (container, exit_code), (kind, text, hint, passing) = case
    stop = stop_reason(code, reason, container, exit_code, 2048)
    assert (stop.kind, stop.passing) == (kind, passing)
    assert text in stop.text
    assert hint in stop.hint
    assert str(stop) == f"{stop.text}\n  → {stop.hint}"


def project() -> Project:
    """bronze.o → silver.a → view v → gold.b → gold.c, and a separate gold.d."""

    def node(name: str, schema: str, *parents: str, kind: str = "lake") -> dict[str, Any]:
        return {
            "resource_type": "model", "name": name, "alias": name, "schema": schema,
            "config": {"materialized": kind}, "depends_on": {"nodes": list(parents)},
        }  # fmt: skip

    def test(*parents: str) -> dict[str, Any]:
        fields = {"resource_type": "test", "name": "t", "config": {"materialized": "test"}}
        return {**fields, "depends_on": {"nodes": list(parents)}}

    return Project(
        {
            "metadata": {"project_name": "p"},
            "sources": {"source.p.o": {"schema": "bronze", "name": "o"}},
            "nodes": {
                "model.p.a": node("a", "silver", "source.p.o"),
                "model.p.v": node("v", "gold", "model.p.a", kind="view"),
                "model.p.b": node("b", "gold", "model.p.v"),
                "model.p.c": node("c", "gold", "model.p.b"),
                "model.p.d": node("d", "gold"),
                "test.p.of_a": test("model.p.a"),
                "test.p.of_b_and_d": test("model.p.b", "model.p.d"),
            },
            "unit_tests": {"unit_test.p.c.u": {"model": "c", "depends_on": {"nodes": ["model.p.c"]}}},
        }
    )


@pytest.mark.parametrize(
    ("failed", "stale"),
    [
        (["model.p.a"], ["gold.b", "gold.c"]),
        (["model.p.v"], ["gold.b", "gold.c"]),
        (["model.p.b"], ["gold.b", "gold.c"]),
        (["test.p.of_a"], ["gold.b", "gold.c"]),
        (["test.p.of_b_and_d"], ["gold.b", "gold.c", "gold.d"]),
        (["unit_test.p.c.u"], ["gold.c"]),
        (["model.p.d", "model.p.c"], ["gold.c", "gold.d"]),
        (["docs"], []),
    ],
)
def test_gold_tables_downstream_of_a_failure_stay_stale(failed: list[str], stale: list[str]) -> None:
    assert stale_tables(project(), failed) == tuple(stale)


def test_console_links_are_the_same_as_those_of_aws() -> None:
    """The URLs are from the console's address bar; log stream names contain a bracket on Lambda and a slash on ECS."""
    assert log_stream_url("us-east-1", "/aws/ecs/busco", "dbt/dbt/0af2[$LATEST]") == (
        "https://us-east-1.console.aws.amazon.com/cloudwatch/home?region=us-east-1#logsV2:log-groups/log-group/"
        "$252Faws$252Fecs$252Fbusco/log-events/dbt$252Fdbt$252F0af2$255B$2524LATEST$255D"
    )
    task = "arn:aws:ecs:eu-west-1:111122223333:task/busco/0123456789abcdef"
    assert ecs_task_url("eu-west-1", "arn:aws:ecs:eu-west-1:111122223333:cluster/busco", task) == (
        "https://eu-west-1.console.aws.amazon.com/ecs/v2/clusters/busco/tasks/0123456789abcdef/configuration"
        "?region=eu-west-1"
    )
    assert athena_table_url("eu-west-1", "busco_gold", "fct_orders", "busco") == (
        "https://eu-west-1.console.aws.amazon.com/athena/home?region=eu-west-1"
        "#/query-editor?workgroup=busco&database=busco_gold&table=fct_orders"
    )
    assert glue_table_url("eu-west-1", "busco_gold", "fct_orders") == (
        "https://eu-west-1.console.aws.amazon.com/glue/home?region=eu-west-1"
        "#/v2/data-catalog/tables/view/fct_orders?database=busco_gold"
    )


@pytest.mark.parametrize(
    ("region", "host"),
    [
        ("sa-east-1", "sa-east-1.console.aws.amazon.com"),
        ("cn-north-1", "cn-north-1.console.amazonaws.cn"),
        ("us-gov-west-1", "us-gov-west-1.console.amazonaws-us-gov.com"),
    ],
)
def test_a_link_leads_to_the_console_of_the_region_s_partition(region: str, host: str) -> None:
    for url in (log_stream_url(region, "g", "s"), ecs_task_url(region, "c", "t"), glue_table_url(region, "d", "t")):
        assert url.startswith(f"https://{host}/")


def test_a_task_is_billed_per_second_and_for_at_least_one_minute() -> None:
    assert cost(1024, 2048, 3600, 0.04048, 0.004445) == Cost(3600, 7200, pytest.approx(0.04048 + 2 * 0.004445))
    assert cost(256, 512, 3.2, 0.04, 0.004).vcpu_seconds == 15
    assert cost(1024, 1024, 60.1, 0.04, 0.004).gb_seconds == 61
    assert cost(1024, 1024, 0, 0.04, 0.004) == Cost(0, 0, 0)
    assert cost(1024, 1024, 60, 1, 0) + cost(512, 1024, 60, 1, 0) == Cost(90, 120, pytest.approx(90 / 3600))
