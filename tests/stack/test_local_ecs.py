"""The local ECS's tasks are containers that behave as on Fargate."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import botocore.exceptions
import psutil
import pytest
from conftest import IMAGE
from ecs_lab import CLUSTER, LIMIT, Lab, built, engine, overrides, parsed, python

from busco.embedded import aws, docker_engine, local_ecs
from busco.embedded.task_shape import OWNER_LABEL
from busco.errors import BuscoError
from tests.integration.own_aws import code_of, quiet, settings_of, started, wait_for

FOREVER = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print('ending'), sys.exit(3)))
print('ready')
while True: time.sleep(1)
"""
STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print('ready')
while True: time.sleep(1)
"""
LOOK = r"""
import json, os, pathlib, urllib.request

def read(*paths):
    return next((pathlib.Path(path).read_text().strip() for path in paths if os.path.exists(path)), None)

def write(path):
    try:
        pathlib.Path(path).write_text('x')
    except OSError as error:
        return error.strerror
    return pathlib.Path(path).read_text()

def get(url):
    with urllib.request.urlopen(url, timeout=10) as reply:
        return json.load(reply)

def refused(url):
    try:
        get(url)
    except urllib.error.HTTPError as error:
        return error.code

metadata = os.environ['ECS_CONTAINER_METADATA_URI_V4']
group = '/sys/fs/cgroup/'
print(json.dumps({
    'memory': read(group + 'memory.max', group + 'memory/memory.limit_in_bytes'),
    'swap': read(group + 'memory.swap.max', group + 'memory/memory.memsw.limit_in_bytes'),
    'cpu': read(group + 'cpu.max', group + 'cpu/cpu.cfs_quota_us'),
    'ids': [os.getuid(), os.getgid()],
    'root': write('/home/file'),
    'tmp': write('/tmp/file'),
    'first': read('/proc/1/comm'),
    'status': dict(line.split(':\t') for line in read('/proc/self/status').splitlines()),
    'environment': dict(os.environ),
    'task': get(metadata + '/task'),
    'container': get(metadata),
    'refused': refused(os.environ['AWS_ENDPOINT_URL'] + '/_busco/identity'),
}))
"""


@pytest.fixture(scope="module", autouse=True)
def _own_environment() -> Iterator[None]:
    with mock.patch.dict(os.environ):
        yield


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    client = engine()
    # /tmp is a VOLUME, as in our image
    image = os.environ["BUSCO_DBT_IMAGE"] = built(client, "VOLUME /tmp")
    running = Lab(started(tmp_path_factory.mktemp("state"), docker=True), client, image).prepare()
    yield running
    aws.down(running.server.settings, quiet)
    client.images.remove(image, force=True)


@pytest.fixture(scope="module")
def seen(lab: Lab) -> dict[str, Any]:
    """What a container with all supported properties reports about itself, and its task's ARN."""
    container = {
        **python(LOOK),
        "user": "10001",
        "readonlyRootFilesystem": True,
        "linuxParameters": {"initProcessEnabled": True, "capabilities": {"drop": ["ALL"]}},
        "environment": [{"name": "AWS_REGION", "value": "sa-east-1"}],
        "mountPoints": [{"sourceVolume": "tmp", "containerPath": "/tmp"}],
    }
    task = lab.run(container, cpu="512", memory="256", volumes=[{"name": "tmp"}])
    assert task["containers"][0]["exitCode"] == 0, "\n".join(lab.output(task["taskArn"]))
    return {**parsed(lab.output(task["taskArn"])), "arn": task["taskArn"]}


# what a container has --------------------------------------------------------------------------------------------


def test_a_container_has_its_tasks_memory_and_no_swap(seen: dict[str, Any]) -> None:
    assert int(seen["memory"]) == 256 * 1024 * 1024
    assert seen["swap"] in (None, "0", seen["memory"]), "cgroup v1 counts memory and swap together"


def test_a_container_has_its_tasks_cpu(seen: dict[str, Any]) -> None:
    assert seen["cpu"] in ("50000 100000", "50000")


def test_memory_limits_of_the_container_and_of_run_task_apply(lab: Lab) -> None:
    small = lab.define({**python(LOOK), "memory": 128})
    arns = [*lab.start(small), *lab.start(small, overrides=overrides(memory=96))]
    arns += lab.start(small, overrides={"memory": "64", "cpu": "256"})
    tasks = [lab.wait(arn) for arn in arns]
    assert [int(parsed(lab.output(arn))["memory"]) // 1024**2 for arn in arns] == [128, 96, 64]
    assert [(task["cpu"], task["memory"]) for task in tasks] == [("512", "256"), ("512", "256"), ("256", "64")]


def test_a_container_runs_as_its_user_and_cannot_gain_privileges(seen: dict[str, Any]) -> None:
    assert (seen["ids"], seen["first"]) == ([10001, 10001], "docker-init")
    assert (int(seen["status"]["CapBnd"], 16), seen["status"]["NoNewPrivs"]) == (0, "1")


def test_the_root_file_system_is_read_only_and_the_scratch_volume_is_writable(seen: dict[str, Any]) -> None:
    assert (seen["root"], seen["tmp"]) == ("Read-only file system", "x")


def test_the_metadata_endpoint_returns_the_task_and_its_limits(seen: dict[str, Any]) -> None:
    assert seen["task"]["TaskARN"] == seen["arn"]
    assert seen["task"]["Limits"] == {"CPU": 0.5, "Memory": 256}
    assert seen["container"]["Limits"]["Memory"] == 256


def test_a_container_gets_the_local_aws_endpoint_and_without_a_role_no_credentials(
    lab: Lab, seen: dict[str, Any]
) -> None:
    assert seen["refused"] == 403, "the server's identity is not available to tasks"
    names = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION", "AWS_REGION")
    known = [seen["environment"].get(name) for name in names]
    assert known == [lab.bridge, "", "", "us-east-1", "sa-east-1"], "the definition's own variables take precedence"
    assert seen["environment"]["AWS_EC2_METADATA_DISABLED"] == "true", "the task has no role"
    assert not [name for name in seen["environment"] if name.startswith("AWS_CONTAINER_")]


def test_nothing_of_a_stopped_task_is_left_in_docker(lab: Lab, seen: dict[str, Any]) -> None:
    assert (lab.containers(seen["arn"]), lab.volumes(seen["arn"])) == ([], [])


def test_containers_of_a_task_share_its_volume_and_end_with_the_essential_one(lab: Lab) -> None:
    mounted = {"mountPoints": [{"sourceVolume": "shared", "containerPath": "/tmp"}]}
    wait = "import os, time\nwhile not os.path.exists('/tmp/file'): time.sleep(0.02)"
    write = "import time\nopen('/tmp/file', 'w').close()\nwhile True: time.sleep(1)"
    side = {"name": "side", "essential": False, "stopTimeout": 2, **python(write), **mounted}
    task = lab.run({**python(wait), **mounted}, side, volumes=[{"name": "shared"}])
    assert {one["name"]: one["exitCode"] for one in task["containers"]} == {"main": 0, "side": 143}
    assert (task["stopCode"], task["stoppedReason"]) == ("EssentialContainerExited", local_ecs.EXITED)


# how a task ends -------------------------------------------------------------------------------------------------


def test_a_container_that_runs_out_of_memory_is_reported_as_by_ecs(lab: Lab) -> None:
    definition = lab.define({**python("x = bytearray(200 * 1024 * 1024)"), "memory": 64})
    for arn in lab.start(definition, count=3):
        task = lab.wait(arn)
        container = task["containers"][0]
        assert (container["exitCode"], container.get("reason")) == (137, local_ecs.OUT_OF_MEMORY)
        assert (task["stopCode"], task["stoppedReason"]) == ("EssentialContainerExited", local_ecs.EXITED)


def test_a_container_that_somebody_kills_is_not_reported_as_out_of_memory(lab: Lab) -> None:
    arn = lab.start(lab.define(python(FOREVER)))[0]
    lab.wait_for_line(arn, "ready")
    lab.containers(arn)[0].kill()
    container = lab.wait(arn)["containers"][0]
    assert (container["exitCode"], container.get("reason")) == (137, None)


def test_the_exit_code_of_a_container_that_ends_at_once_is_correct(lab: Lab) -> None:
    definition = lab.define({"command": ["sh", "-c", "exit 7"]})
    tasks = [lab.wait(arn) for arn in lab.start(definition, count=4)]
    assert [(one["containers"][0]["exitCode"], one["stopCode"]) for one in tasks] == [
        (7, "EssentialContainerExited")
    ] * 4


def test_a_stopped_tasks_log_is_complete_and_its_lines_are_whole(lab: Lab) -> None:
    code = """
import sys
long = 'é' * 30_000
for n in range(40_000): print(f"line {n:05d} →")
print(long)
print('error', file=sys.stderr, end='', flush=True)
print('last', end='')
"""
    task = lab.run({"command": ["python3", "-c", code]})
    expected = [*(f"line {n:05d} →" for n in range(40_000)), "é" * 30_000, "error", "last"]
    found = lab.output(task["taskArn"])
    assert len(found) == len(expected)
    assert [line for line in found if line not in ("error", "last")] == expected[:-2]
    assert {"error", "last"} <= set(found)


def test_a_task_with_an_image_that_is_not_the_platform_s_fails_to_start(lab: Lab) -> None:
    task = lab.run({"image": IMAGE, "command": ["true"]})
    assert task["stopCode"] == "TaskFailedToStart"
    assert task["stoppedReason"].startswith(f"CannotStartContainerError: {IMAGE} is not the image {lab.image}")
    assert "exitCode" not in task["containers"][0]
    assert (lab.containers(task["taskArn"]), lab.volumes(task["taskArn"])) == ([], [])


def test_a_task_with_an_image_that_does_not_exist_fails_to_start(tmp_path: Path) -> None:
    absent = "127.0.0.1:9/absent:1"
    with mock.patch.dict(os.environ, BUSCO_DBT_IMAGE=absent):
        other = Lab(started(tmp_path / "state", docker=True), engine(), absent).prepare()
        try:
            task = other.run({"command": ["true"]})
        finally:
            aws.down(other.server.settings, quiet)
    assert task["stopCode"] == "TaskFailedToStart"
    assert task["stoppedReason"].startswith("CannotPullContainerError: ")
    assert "127.0.0.1:9" in task["stoppedReason"]
    assert "exitCode" not in task["containers"][0]


def test_a_command_that_does_not_exist_is_named_in_the_task_s_log(lab: Lab) -> None:
    task = lab.run({"command": ["/absent"]})
    assert (task["stopCode"], task["containers"][0]["exitCode"]) == ("EssentialContainerExited", 127)
    assert any("/absent" in line for line in lab.output(task["taskArn"]))


def test_a_task_without_its_log_group_fails_to_start_and_starts_no_container(lab: Lab) -> None:
    options = {"awslogs-group": "/absent", "awslogs-region": "us-east-1", "awslogs-stream-prefix": "x"}
    task = lab.run({"command": ["true"], "logConfiguration": {"logDriver": "awslogs", "options": options}})
    assert task["stopCode"] == "TaskFailedToStart"
    assert task["stoppedReason"].startswith("ResourceInitializationError: failed to validate logger args")


# StopTask, RunTask, ListTasks ------------------------------------------------------------------------------------


def test_stop_task_sends_sigterm_and_the_exit_code_is_the_containers(lab: Lab) -> None:
    arn = lab.start(lab.define(python(FOREVER)))[0]
    lab.wait_for_line(arn, "ready")
    lab.ecs.stop_task(cluster=CLUSTER, task=arn, reason="no longer followed")
    task = lab.wait(arn)
    assert task["containers"][0]["exitCode"] == 3
    assert (task["stopCode"], task["stoppedReason"]) == ("UserInitiated", "no longer followed")
    assert lab.output(arn) == ["ready", "ending"]


def test_stop_task_returns_at_once_and_kills_after_the_containers_stop_timeout(lab: Lab) -> None:
    arn = lab.start(lab.define({**python(STUBBORN), "stopTimeout": 4}))[0]
    lab.wait_for_line(arn, "ready")
    stopping = lab.ecs.stop_task(cluster=CLUSTER, task=arn, reason="first")["task"]
    assert (stopping["desiredStatus"], [one.status for one in lab.containers(arn)]) == ("STOPPED", ["running"])
    assert lab.ecs.stop_task(cluster=CLUSTER, task=arn, reason="second")["task"]["stoppedReason"] == "first"
    assert lab.task(arn)["lastStatus"] != "STOPPED", "its container is still running"
    container = lab.wait(arn)["containers"][0]
    assert (container["exitCode"], container.get("reason")) == (137, None)


def test_a_task_stopped_while_it_starts_leaves_no_container(lab: Lab) -> None:
    arns = lab.start(lab.define({**python(FOREVER), "stopTimeout": 2}), count=3)
    for arn in arns:
        lab.ecs.stop_task(cluster=CLUSTER, task=arn, reason="never mind")
    tasks = [lab.wait(arn) for arn in arns]
    assert {(one["stopCode"], one["stoppedReason"]) for one in tasks} == {("UserInitiated", "never mind")}
    assert [lab.containers(arn) for arn in arns] == [[], [], []]


def test_a_client_token_starts_one_task_and_is_refused_with_other_parameters(lab: Lab) -> None:
    definition = lab.define({"command": ["true"]})
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: lab.start(definition, clientToken="run-1"), range(3)))
    first = found[0]
    assert found == [first] * 3
    assert lab.wait(first[0])["lastStatus"] == "STOPPED"
    assert lab.start(definition, clientToken="run-1") == first, "even after the task has ended"
    assert lab.start(definition, clientToken="run-2") != first
    with pytest.raises(botocore.exceptions.ClientError, match="already in use") as refused:
        lab.start(definition, clientToken="run-1", startedBy="another")
    assert refused.value.response["Error"]["Code"] == "ConflictException"
    assert refused.value.response["resourceIds"] == first


@pytest.mark.parametrize(
    ("container", "definition"),
    [
        ({"privileged": True}, {}),
        ({"linuxParameters": {"capabilities": {"add": ["SYS_ADMIN"]}}}, {}),
        ({"linuxParameters": {"devices": [{"hostPath": "/dev/null"}]}}, {}),
        ({}, {"networkMode": "host"}),
        ({}, {"pidMode": "host"}),
        ({}, {"volumes": [{"name": "all", "host": {"sourcePath": "/"}}]}),
        ({}, {"volumes": [{"name": "any", "dockerVolumeConfiguration": {"scope": "shared"}}]}),
        ({"entryPoint": ["sh", "-c"]}, {}),
        ({"user": "0"}, {}),
        ({"readonlyRootFilesystem": False}, {}),
    ],
    ids=str,
)
def test_a_task_with_an_option_that_our_template_does_not_use_is_refused(
    lab: Lab, container: dict[str, Any], definition: dict[str, Any]
) -> None:
    with pytest.raises(botocore.exceptions.ClientError, match=r"see deploy/aws/ecs\.yaml for what tasks can use"):
        lab.run({"command": ["true"], **container}, **definition)


def test_overrides_longer_than_ecs_allows_are_refused(lab: Lab) -> None:
    definition = lab.define({"command": ["true"]})
    long = overrides(environment=[{"name": "X", "value": "x" * 8192}])
    assert code_of(lambda: lab.start(definition, overrides=long)) == "InvalidParameterException"


def test_tasks_are_listed_by_who_started_them_running_and_stopped(lab: Lab) -> None:
    runs, ended = lab.define(python(FOREVER)), lab.define({"command": ["true"]})
    running, done = lab.start(runs, startedBy="me")[0], lab.start(ended, startedBy="me")[0]
    lab.start(ended, startedBy="other")
    lab.wait_for_line(running, "ready")
    lab.wait(done)

    def listed(**options: str) -> list[str]:
        found: list[str] = lab.ecs.list_tasks(cluster=CLUSTER, startedBy="me", **options)["taskArns"]
        return found

    assert (listed(), listed(desiredStatus="STOPPED")) == ([running], [done])
    lab.ecs.stop_task(cluster=CLUSTER, task=running)
    lab.wait(running)


# the local AWS around it -----------------------------------------------------------------------------------------


def test_the_local_aws_listens_only_on_loopback_and_docker_s_bridge(lab: Lab) -> None:
    family = [psutil.Process(lab.server.process.pid), *psutil.Process(lab.server.process.pid).children(recursive=True)]
    sockets = [one for process in family for one in process.net_connections(kind="inet")]
    listening = {one.laddr for one in sockets if one.status == psutil.CONN_LISTEN}
    host, _, port = lab.bridge.removeprefix("http://").partition(":")
    assert {(one.ip, one.port) for one in listening} == {("127.0.0.1", int(port)), (host, int(port))}
    addresses = {one.address for all_of in psutil.net_if_addrs().values() for one in all_of if one.family == 2}
    for address in addresses - {"127.0.0.1", host}:
        with socket.socket() as probe, pytest.raises(OSError):
            probe.settimeout(5)
            probe.connect((address, int(port)))


def test_after_being_killed_the_local_aws_stops_its_own_containers_when_it_restarts(lab: Lab) -> None:
    arn = lab.start(
        lab.define(
            {**python(STUBBORN), "mountPoints": [{"sourceVolume": "v", "containerPath": "/tmp"}]},
            volumes=[{"name": "v"}],
        )
    )[0]
    lab.wait_for_line(arn, "ready")
    foreign = [
        lab.docker.containers.run(IMAGE, ["sleep", "300"], detach=True, init=True, labels=label)
        for label in ({OWNER_LABEL: "another"}, {})
    ]
    try:
        endpoint = lab.server.endpoint
        lab.server.kill()
        assert len(lab.containers(arn)) == 1
        lab.server = started(lab.server.settings.state)
        lab.prepare()
        assert lab.server.endpoint == endpoint
        assert (lab.containers(), lab.volumes(arn)) == ([], [])
        for container in foreign:
            container.reload()
            assert container.status == "running"
        failures = lab.ecs.describe_tasks(cluster=CLUSTER, tasks=[arn])["failures"]
        assert [one["reason"] for one in failures] == ["MISSING"]
    finally:
        for container in foreign:
            container.remove(force=True)


def test_stopping_a_local_aws_that_was_killed_stops_its_containers_too(lab: Lab) -> None:
    arn = lab.start(lab.define(python(STUBBORN)))[0]
    lab.wait_for_line(arn, "ready")
    lab.server.kill()
    aws.down(lab.server.settings, quiet)
    assert lab.containers() == []
    lab.server = started(lab.server.settings.state)
    lab.prepare()


def test_the_status_lists_the_running_tasks_and_sigterm_stops_them(lab: Lab) -> None:
    definition = lab.define(python(FOREVER))
    arn = lab.start(definition)[0]
    lab.wait_for_line(arn, "ready")
    names = [one.rpartition("/")[2] for one in (definition, arn)]
    assert dict(lab.status())["ECS tasks"] == f"1 running\n  {' '.join(names)}"
    os.kill(lab.server.process.pid, signal.SIGTERM)
    wait_for(lambda: not lab.containers(), LIMIT)
    aws.down(lab.server.settings, quiet)


def test_a_docker_engine_that_cannot_be_reached_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/absent.sock")
    with pytest.raises(BuscoError, match="Docker can't be reached at unix:") as refused:
        aws.up(settings_of(tmp_path / "state"), quiet, docker=True)
    assert "--no-docker" in refused.value.hint
    assert aws.status(settings_of(tmp_path / "state")) == [("local AWS", "not running")]


def test_docker_is_used_if_it_is_requested_or_models_run_on_ecs(tmp_path: Path) -> None:
    def is_used(requested: bool | None, execution: str) -> bool:
        engine = docker_engine.wanted(tmp_path, requested, execution)
        docker_engine.remember(tmp_path, engine, requested)
        return bool(engine)

    assert not is_used(None, "local")
    assert is_used(None, "ecs_shared")
    assert is_used(None, "local"), "it stays in use"
    assert not is_used(False, "ecs")
    assert not is_used(None, "ecs"), "it was declined"
    assert is_used(True, "local")
