"""What a container is told of its ECS task: limits and variables; and its output.

Pure translation of task definitions as ECS documents them; `busco.embedded.local_ecs` puts it in place.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

STOP_TIMEOUT = 30  # seconds between SIGTERM and SIGKILL where the container doesn't say, as on Fargate
STOP_TIMEOUT_LABEL = "busco.stop-timeout"
MOST_OF_LINE = 262_144 - 26  # bytes: an event's, without those that CloudWatch Logs adds (API reference, PutLogEvents)
_GIBIBYTE = 1024  # MiB
_VCPU = 1024  # CPU units


@dataclass(frozen=True)
class Limits:
    """CPU in vCPU and memory in MiB; 0 where there is none."""

    cpu: float
    memory: int

    def metadata(self) -> dict[str, float]:
        """As the task metadata endpoint words a task's `Limits`."""
        return {name: value for name, value in (("CPU", self.cpu), ("Memory", self.memory)) if value}


def task_limits(definition: Mapping[str, Any], overrides: Mapping[str, Any]) -> Limits:
    """A task's limits: its definition's, or what RunTask gave in their place."""
    return Limits(
        _vcpus(overrides.get("cpu") or definition.get("cpu") or 0),
        _mebibytes(overrides.get("memory") or definition.get("memory") or 0),
    )


def container_limits(container: Mapping[str, Any], task: Limits, override: Mapping[str, Any]) -> Limits:
    """A container's limits. It gets no more than its task has; without a share of its own it may use all of that."""
    cpu = _vcpus(override.get("cpu") or container.get("cpu") or 0)
    memory = _mebibytes(override.get("memory") or container.get("memory") or 0)
    return Limits(task.cpu or cpu, min(filter(None, (memory, task.memory)), default=0))


def environment(
    given: Mapping[str, str], endpoint: str, region: str, launch_type: str, credentials: Mapping[str, str]
) -> dict[str, str]:
    """Variables by which a task finds the local AWS and its role's credentials; what its definition or RunTask gave
    stands."""
    variables = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_REGION": region,
        "AWS_DEFAULT_REGION": region,
        "AWS_EXECUTION_ENV": f"AWS_ECS_{launch_type}",
        **credentials,
    }
    return {**variables, **given}


def roles(definition: Mapping[str, Any], overrides: Mapping[str, Any]) -> list[str]:
    """ARNs of the roles that a task is started with: its own and the one that starts it."""
    names = ("taskRoleArn", "executionRoleArn")
    found = [overrides.get(name) or definition.get(name) for name in names]
    return [str(one) for one in found if one]


def lines(api: Any, container: str) -> Iterator[list[tuple[int, str]]]:
    """A container's output until it ends, of both streams: its lines as they come, many at once from one that is fast.

    Docker gives long lines in pieces that end anywhere, within a character too. A line is given up at MOST_OF_LINE, as
    the log driver of ECS splits it: what a container writes without an end is not kept in memory.

    Args:
        api: docker-py's `APIClient`.
        container: its id.

    Returns:
        Of each line, milliseconds since the epoch, which never go back, and its text. Empty ones are left out, as
        CloudWatch Logs takes none.
    """
    url = f"{api.base_url}/v{api.api_version}/containers/{container}/logs"
    wanted = {"stdout": 1, "stderr": 1, "follow": 1, "timestamps": 1}
    unfinished: dict[int, _Line] = {}
    latest = 0
    with api.get(url, params=wanted, stream=True, timeout=None) as response:
        response.raise_for_status()
        while len(header := _exactly(response.raw, 8)) == 8:
            stream, size = struct.unpack(">BxxxL", header)
            written, _, content = _exactly(response.raw, size).partition(b" ")
            latest = max(latest, int(datetime.fromisoformat(written.decode()).timestamp() * 1000))
            whole = unfinished.setdefault(stream, _Line()).add(content)
            if come := [(latest, line.decode(errors="replace")) for line in whole if line]:
                yield come
    if last := [(latest, rest.decode(errors="replace")) for line in unfinished.values() if (rest := line.taken())]:
        yield last


class _Line:
    """A line that has not ended yet, in pieces: joined once, whatever number they are."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0

    def add(self, content: bytes) -> list[bytes]:
        """The lines that end with more of a stream's content."""
        first, *others = content.split(b"\n")
        ended = []
        for piece in others:
            ended += [*self._put(first), self.taken()]
            first = piece
        return [*ended, *self._put(first)]

    def taken(self) -> bytes:
        """What there is of the line; it begins again."""
        whole = b"".join(self._pieces)
        self._pieces, self._size = [], 0
        return whole

    def _put(self, piece: bytes) -> list[bytes]:
        self._pieces.append(piece)
        self._size += len(piece)
        if self._size < MOST_OF_LINE:
            return []
        whole = self.taken()
        return [whole[at : at + MOST_OF_LINE] for at in range(0, len(whole), MOST_OF_LINE)]


def _exactly(raw: Any, size: int) -> bytes:
    """That many bytes, fewer only at the end."""
    content = b""
    while len(content) < size and (more := raw.read(size - len(content))):
        content += more
    return content


def _vcpus(given: str | float) -> float:
    """vCPU of `256`, `0.25 vCPU`."""
    number, unit = _parsed(given)
    return number if unit == "vcpu" else number / _VCPU


def _mebibytes(given: str | float) -> int:
    """MiB of `512`, `0.5 GB`."""
    number, unit = _parsed(given)
    return int(number * _GIBIBYTE if unit == "gb" else number)


def _parsed(given: str | float) -> tuple[float, str]:
    text = str(given).strip().lower()
    unit = next((unit for unit in ("vcpu", "gb") if text.endswith(unit)), "")
    return float(text.removesuffix(unit)), unit
