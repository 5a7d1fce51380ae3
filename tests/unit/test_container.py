"""A container's resource limits are found in its cgroups, in the ECS task metadata or in a setting."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest

from busco import container
from busco.lake import budget
from busco.lake.budget import MIB
from busco.settings import Settings
from tests.loopback import Handler, serving

GIB = 1 << 30
# the fields of proc_pid_mountinfo(5): ids, device, root within the file system, mount point, options
V2_MOUNT = "30 23 0:26 {root} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
V1_MOUNT = "33 25 0:29 {root} /sys/fs/cgroup/{name} rw,nosuid shared:9 - cgroup cgroup rw,{name}"
OTHER_MOUNT = "24 29 0:22 / /proc rw,nosuid - proc proc rw"


@pytest.fixture(autouse=True)
def outside_of_ecs() -> Iterator[None]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ECS_")}
    with mock.patch.dict(os.environ, kept, clear=True):
        container._task.cache_clear()
        budget._warn_of_no_limit.cache_clear()
        yield
        container._task.cache_clear()


def tree(root: Path, cgroup: str, mounts: list[str], files: dict[str, str]) -> Path:
    written = {"proc/self/cgroup": cgroup, "proc/self/mountinfo": "\n".join([OTHER_MOUNT, *mounts])}
    for name, text in {**written, **{f"sys/fs/cgroup/{name}": text for name, text in files.items()}}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


# -- cgroups ----------------------------------------------------------------------------------------------------------


def test_a_container_has_the_limits_of_its_cgroup_v2(tmp_path: Path) -> None:
    mount = V2_MOUNT.format(root="/")
    root = tree(tmp_path, "0::/", [mount], {"memory.max": str(2 * GIB), "cpu.max": "150000 100000"})
    assert container.memory_limit_bytes(root) == 2 * GIB
    assert container.cpu_limit(root) == 1.5


def test_the_smallest_limit_of_a_cgroup_and_its_ancestors_applies(tmp_path: Path) -> None:
    files = {
        "system.slice/memory.max": str(3 * GIB), "system.slice/cpu.max": "50000 100000",
        "system.slice/inner/memory.max": str(4 * GIB), "system.slice/inner/cpu.max": "max 100000",
        "system.slice/inner/own/memory.max": "max", "system.slice/inner/own/cpu.max": "300000 100000",
        "other/memory.max": str(GIB),
    }  # fmt: skip
    root = tree(tmp_path, "0::/system.slice/inner/own", [V2_MOUNT.format(root="/")], files)
    assert container.memory_limit_bytes(root) == 3 * GIB
    assert container.cpu_limit(root) == 0.5


def test_the_value_max_means_no_limit(tmp_path: Path) -> None:
    root = tree(tmp_path, "0::/", [V2_MOUNT.format(root="/")], {"memory.max": "max", "cpu.max": "max 100000"})
    assert container.memory_limit_bytes(root) is None
    assert container.cpu_limit(root) is None


@pytest.mark.parametrize(("path", "mounted"), [("/docker/abc", "/docker/abc"), ("/", "/"), ("/../other", "/..")])
def test_limits_of_cgroup_v1_are_found_with_and_without_a_namespace(tmp_path: Path, path: str, mounted: str) -> None:
    files = {
        "memory/memory.limit_in_bytes": str(GIB), "cpu/cpu.cfs_quota_us": "25000", "cpu/cpu.cfs_period_us": "100000",
    }  # fmt: skip
    mounts = [V1_MOUNT.format(root=mounted, name=name) for name in ("memory", "cpu")]
    root = tree(tmp_path, f"5:memory:{path}\n4:cpu:{path}\n0::/", mounts, files)
    assert container.memory_limit_bytes(root) == GIB
    assert container.cpu_limit(root) == 0.25


def test_the_values_that_cgroup_v1_reports_without_a_limit_mean_no_limit(tmp_path: Path) -> None:
    files = {
        "memory/memory.limit_in_bytes": "9223372036854771712", "cpu/cpu.cfs_quota_us": "-1",
        "cpu/cpu.cfs_period_us": "100000",
    }  # fmt: skip
    mounts = [V1_MOUNT.format(root="/", name=name) for name in ("memory", "cpu")]
    root = tree(tmp_path, "5:memory:/\n4:cpu:/", mounts, files)
    assert container.memory_limit_bytes(root) is None
    assert container.cpu_limit(root) is None


def test_there_is_no_limit_if_no_cgroup_is_mounted(tmp_path: Path) -> None:
    assert container.memory_limit_bytes(tmp_path) is None
    assert container.cpu_limit(tmp_path) is None


# -- the ECS task metadata --------------------------------------------------------------------------------------------

ARN = "arn:aws:ecs:us-east-1:123456789012:task/busco/158d1c8083dd49d6b527399fd6414f5c"
TASK = {
    "Cluster": "busco", "TaskARN": ARN, "Family": "busco-dbt-large", "Revision": "7", "LaunchType": "FARGATE",
    "Limits": {"CPU": 0.5, "Memory": 4096},
}  # fmt: skip
OWN = {"DockerId": "cd189a933e5849daa93386466019ab50", "Name": "dbt", "Limits": {"CPU": 2}}


@pytest.fixture
def metadata(tmp_path: Path) -> Iterator[Callable[..., list[str]]]:
    """Starts a metadata endpoint for this process.

    The returned function sets the endpoint's responses and returns the list of paths that are requested from it.
    """
    requested: list[str] = []
    responses: dict[str, tuple[int, object]] = {}

    class Endpoint(Handler):
        def do_GET(self) -> None:
            requested.append(self.path)
            first = len(requested) == 1
            status, body = responses[self.path] if not (first and responses.get("first")) else responses["first"]
            self.answer(status, json.dumps(body).encode())

    with serving(Endpoint) as url, mock.patch.dict(os.environ, {"ECS_CONTAINER_METADATA_URI_V4": f"{url}/v4/token"}):

        def respond_with(task: object, own: object, first: tuple[int, object] | None = None) -> list[str]:
            responses.update({"/v4/token": (200, own), "/v4/token/task": (200, task)})
            if first:
                responses["first"] = first
            return requested

        yield respond_with


def test_an_ecs_task_requests_its_metadata_only_once(metadata: Callable[..., list[str]]) -> None:
    requested = metadata(TASK, OWN)
    task = container.this_task()
    assert task == container.TaskMetadata(ARN, "busco", "busco-dbt-large", "7", "dbt", 0.5, 4096 * MIB)
    assert container.this_task() is task
    assert sorted(requested) == ["/v4/token", "/v4/token/task"]


def test_the_smallest_limit_of_cgroup_task_and_container_applies(
    metadata: Callable[..., list[str]], tmp_path: Path
) -> None:
    metadata(TASK, {**OWN, "Limits": {"CPU": 2, "Memory": 3072}})
    files = {"memory.max": str(8 * GIB), "cpu.max": "200000 100000"}
    root = tree(tmp_path, "0::/", [V2_MOUNT.format(root="/")], files)
    assert container.memory_limit_bytes(root) == 3072 * MIB
    # a container's CPU value is a relative weight, not a limit
    assert container.cpu_limit(root) == 0.5
    (root / "sys/fs/cgroup/memory.max").write_text(f"{GIB}\n")
    assert container.memory_limit_bytes(root) == GIB


def test_a_failed_metadata_request_is_retried(metadata: Callable[..., list[str]]) -> None:
    metadata(TASK, OWN, first=(500, {}))
    task = container.this_task()
    assert task is not None
    assert (task.container, task.memory) == ("dbt", 4096 * MIB)


def test_metadata_without_limits_means_no_limits(metadata: Callable[..., list[str]], tmp_path: Path) -> None:
    metadata({"TaskARN": ARN}, {"Name": "dbt"})
    task = container.this_task()
    assert task is not None
    assert (task.arn, task.cpu, task.memory) == (ARN, None, None)
    assert container.memory_limit_bytes(tmp_path) is None


def test_a_process_outside_ecs_has_no_task_metadata() -> None:
    assert container.this_task() is None
    assert not container.in_ecs()


def test_there_is_no_task_metadata_if_the_endpoint_does_not_respond() -> None:
    with mock.patch.dict(os.environ, {"ECS_CONTAINER_METADATA_URI_V4": "http://127.0.0.1:1/v4/token"}):
        assert container.in_ecs()
        assert container.this_task() is None


# -- DuckDB's share ---------------------------------------------------------------------------------------------------


def unlimited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "_settings", lambda *_: iter(()))


def test_duckdb_gets_a_share_of_the_task_memory_and_at_most_one_thread_per_cpu(
    metadata: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlimited(monkeypatch)
    metadata(TASK, OWN)
    whole = budget.budget(Settings(home=tmp_path, state_dir=tmp_path))
    assert whole.container == 4096 * MIB
    assert whole.memory == f"{budget.share_of(4096 * MIB)}B"
    assert whole.threads == 1
    shared = budget.budget(Settings(home=tmp_path, state_dir=tmp_path), among=4)
    assert shared.memory == f"{budget.share_of(4096 * MIB) // 4}B"


@pytest.mark.parametrize("mebibytes", [256, 512, 1024, 4096, 16384, 122880])
def test_duckdbs_share_leaves_room_for_memory_that_duckdb_does_not_track(mebibytes: int) -> None:
    share = budget.share_of(mebibytes * MIB)
    assert share > 0
    assert share <= mebibytes * MIB / 2 or share <= mebibytes * MIB - 600 * MIB


def test_the_setting_overrides_the_containers_limit(metadata: Callable[..., list[str]], tmp_path: Path) -> None:
    metadata(TASK, OWN)
    settings = Settings(home=tmp_path, state_dir=tmp_path, duckdb_memory_limit="3GB", duckdb_spill_limit="7GB")
    limits = budget.budget(settings)
    assert (limits.memory, limits.spill) == ("3GB", "7GB")


def test_a_missing_memory_limit_of_an_ecs_container_is_warned_about_once(
    metadata: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    unlimited(monkeypatch)
    metadata({"TaskARN": ARN}, {"Name": "dbt"})
    settings = Settings(home=tmp_path, state_dir=tmp_path)
    with caplog.at_level(logging.WARNING):
        assert budget.budget(settings).memory == ""
        budget.budget(settings)
    (line,) = [record.getMessage() for record in caplog.records if "memory limit" in record.getMessage()]
    assert "BUSCO_DUCKDB_MEMORY_LIMIT" in line
    assert "\n" not in line


def test_a_missing_memory_limit_outside_ecs_is_not_warned_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    unlimited(monkeypatch)
    assert budget.budget(Settings(home=tmp_path, state_dir=tmp_path)).memory == ""
    assert not caplog.records
