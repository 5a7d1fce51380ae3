"""Determines this container's resource limits and ECS task from cgroups and the ECS task metadata endpoint."""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

# The ECS agent on the host normally responds within milliseconds. The timeout and the number of tries are low because
# processes wait for the responses when they start.
_METADATA_SECONDS = 1.0
_METADATA_TRIES = 2
_MIB = 1 << 20
# If there is no limit, cgroup v1 reports the largest multiple of the page size that fits in its counter (Linux,
# Documentation/admin-guide/cgroup-v1/memory.rst). No container has an exbibyte of memory.
_NO_LIMIT = 1 << 60
# The paths in /proc/self/mountinfo contain octal escapes instead of these characters (proc_pid_mountinfo(5)).
_ESCAPES = (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\"))


@dataclass(frozen=True)
class TaskMetadata:
    """An ECS task, as described by its metadata endpoint.

    `cpu` is in vCPUs. `memory` is in bytes, and is the smaller of the task's and this container's limits. None means
    no limit.
    """

    arn: str
    cluster: str
    family: str
    revision: str
    container: str
    cpu: float | None
    memory: int | None


def in_ecs() -> bool:
    """Whether this process runs in an ECS task."""
    return bool(os.environ.get("ECS_CONTAINER_METADATA_URI_V4"))


def this_task() -> TaskMetadata | None:
    """Returns the ECS task of this process; None outside of ECS, or if the metadata endpoint does not respond."""
    uri = os.environ.get("ECS_CONTAINER_METADATA_URI_V4")
    return _task(uri) if uri else None


def memory_limit_bytes(root: Path = Path("/")) -> int | None:
    """Returns the memory that this container can use: the smallest limit in its cgroups and the ECS task metadata.

    Args:
        root: the folder that contains /proc and /sys.

    Returns:
        The limit in bytes, or None if there is none.
    """
    limits = [_integer(text) for text in _settings(root, "memory", "memory.max", "memory.limit_in_bytes")]
    task = this_task()
    found = [limit for limit in (*limits, task.memory if task else None) if limit is not None and limit < _NO_LIMIT]
    return min(found, default=None)


def cpu_limit(root: Path = Path("/")) -> float | None:
    """Returns the number of CPUs that this container can use: the smallest limit in its cgroups and the ECS task
    metadata, or None if there is no limit."""
    found = [quota for text in _settings(root, "cpu", "cpu.max", "cpu.cfs_quota_us") if (quota := _quota(text))]
    task = this_task()
    if task is not None and task.cpu is not None:
        found.append(task.cpu)
    return min(found, default=None)


# -- cgroups ----------------------------------------------------------------------------------------------------------


def _settings(root: Path, controller: str, v2: str, v1: str) -> Iterator[str]:
    """Yields a setting's value from this process's cgroup and from that cgroup's ancestors, if they are mounted.

    Both cgroup v1 and v2 are read, since both can be mounted at once. A quota from v1 is followed by its period, as in
    v2's format.

    Args:
        v2: the name of the setting's file in cgroup v2.
        v1: the name of that file in cgroup v1.
    """
    for folder, unified in _cgroups(root, controller):
        text = _text(folder / (v2 if unified else v1))
        if text and v1 == "cpu.cfs_quota_us" and not unified:
            text = f"{text} {_text(folder / 'cpu.cfs_period_us')}"
        if text:
            yield text


def _cgroups(root: Path, controller: str) -> Iterator[tuple[Path, bool]]:
    """Yields the folder of each of this process's cgroups for a controller, innermost first, and whether the cgroup
    is v2."""
    own: dict[str, str] = {}
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        own |= dict.fromkeys(controllers.split(","), path)
    for line in _text(root / "proc/self/mountinfo").splitlines():
        mount, _, rest = line.partition(" - ")
        kind, options = rest.split()[0], rest.split()[-1]
        unified = kind == "cgroup2"
        if not unified and not (kind == "cgroup" and controller in options.split(",")):
            continue
        mounted, point = (_unescaped(field) for field in mount.split()[3:5])
        top = root / point.lstrip("/")
        below = _below(own.get("" if unified else controller, "/"), mounted)
        for folder in (top / below, *(top / parent for parent in below.parents)):
            yield folder, unified


def _below(path: str, mounted: str) -> PurePosixPath:
    """Returns a cgroup's path relative to a mount whose root is the cgroup `mounted`.

    A container without a cgroup namespace sees the host's paths; one with a namespace sees `..` in place of
    cgroups above its own. In both cases, the mount's top folder is the container's cgroup.
    """
    if ".." in (parts := PurePosixPath(path).parts) or ".." in PurePosixPath(mounted).parts:
        return PurePosixPath()
    above = PurePosixPath(mounted).parts
    return PurePosixPath(*parts[len(above) :]) if parts[: len(above)] == above else PurePosixPath()


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _unescaped(field: str) -> str:
    for escape, char in _ESCAPES:
        field = field.replace(escape, char)
    return field


def _integer(text: str) -> int | None:
    return int(text) if text.isdigit() else None


def _quota(text: str) -> float | None:
    """Returns how many CPUs `<quota> <period>` (both in microseconds) allows; None for `max` or -1 (no limit)."""
    quota, _, period = text.partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else None


# -- the ECS task metadata endpoint, version 4 ------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _task(uri: str) -> TaskMetadata | None:
    container, task = _metadata(uri), _metadata(f"{uri}/task")
    if task is None:
        return None
    # A container's CPU value is a weight; only the task's is a limit (Amazon ECS Developer Guide, "task metadata
    # version 4").
    limits = task.get("Limits") or {}
    own = (container or {}).get("Limits") or {}
    memory = [int(mib) * _MIB for mib in (limits.get("Memory"), own.get("Memory")) if mib]
    return TaskMetadata(
        arn=str(task.get("TaskARN", "")),
        cluster=str(task.get("Cluster", "")),
        family=str(task.get("Family", "")),
        revision=str(task.get("Revision", "")),
        container=str((container or {}).get("Name", "")),
        cpu=float(limits["CPU"]) if limits.get("CPU") else None,
        memory=min(memory, default=None),
    )


def _metadata(uri: str) -> dict[str, Any] | None:
    # The address is local to the host, so a proxy must not be used.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for _ in range(_METADATA_TRIES):
        try:
            with opener.open(uri, timeout=_METADATA_SECONDS) as answer:
                found = json.load(answer)
                return found if isinstance(found, dict) else None
        except (OSError, ValueError):
            continue
    return None
