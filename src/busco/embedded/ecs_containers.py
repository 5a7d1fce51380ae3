"""Translates ECS task definitions into container limits and environment variables, and reads container output.

The functions follow the ECS documentation and have no side effects; `busco.embedded.local_ecs` applies their results.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

STOP_TIMEOUT = 30  # default seconds between SIGTERM and SIGKILL, as on Fargate
STOP_TIMEOUT_LABEL = "busco.stop-timeout"
MAX_LINE_BYTES = 262_144 - 26  # bytes per event, minus CloudWatch Logs' overhead (API reference, PutLogEvents)
_GIBIBYTE = 1024  # MiB
_VCPU = 1024  # CPU units


@dataclass(frozen=True)
class Limits:
    """CPU in vCPU and memory in MiB; 0 means no limit."""

    cpu: float
    memory: int

    def metadata(self) -> dict[str, float]:
        """Returns the limits in the format of the task metadata endpoint's `Limits`."""
        return {name: value for name, value in (("CPU", self.cpu), ("Memory", self.memory)) if value}


def task_limits(definition: Mapping[str, Any], overrides: Mapping[str, Any]) -> Limits:
    """Returns a task's limits: those of its definition, unless RunTask overrides them."""
    return Limits(
        _vcpus(overrides.get("cpu") or definition.get("cpu") or 0),
        _mebibytes(overrides.get("memory") or definition.get("memory") or 0),
    )


def container_limits(container: Mapping[str, Any], task: Limits, override: Mapping[str, Any]) -> Limits:
    """Returns a container's limits, which never exceed the task's and are by default equal to the task's."""
    cpu = _vcpus(override.get("cpu") or container.get("cpu") or 0)
    memory = _mebibytes(override.get("memory") or container.get("memory") or 0)
    return Limits(task.cpu or cpu, min(filter(None, (memory, task.memory)), default=0))


def environment(
    given: Mapping[str, str], endpoint: str, region: str, launch_type: str, credentials: Mapping[str, str]
) -> dict[str, str]:
    """Returns a container's variables, including the local AWS's endpoint and the variables in `credentials`.

    Variables from the task definition or RunTask take precedence.
    """
    variables = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_REGION": region,
        "AWS_DEFAULT_REGION": region,
        "AWS_EXECUTION_ENV": f"AWS_ECS_{launch_type}",
        **credentials,
    }
    return {**variables, **given}


def roles(definition: Mapping[str, Any], overrides: Mapping[str, Any]) -> list[str]:
    """Returns the ARNs of a task's role and execution role, if they are set."""
    names = ("taskRoleArn", "executionRoleArn")
    found = [overrides.get(name) or definition.get(name) for name in names]
    return [str(one) for one in found if one]


def lines(api: Any, container: str) -> Iterator[list[tuple[int, str]]]:
    """Yields a container's output from both streams until it exits, in batches of lines as they arrive.

    Docker splits long lines into pieces at arbitrary bytes, even within a character. This function joins the pieces.
    Like the ECS log driver, it splits lines at MAX_LINE_BYTES, so that a container that never ends a line can't exhaust
    the memory.

    Args:
        api: docker-py's `APIClient`.
        container: the container's id.

    Returns:
        Batches of lines, each with its timestamp in milliseconds since the Unix epoch (never decreasing) and its text.
        Empty lines are left out, because CloudWatch Logs rejects them.
    """
    url = f"{api.base_url}/v{api.api_version}/containers/{container}/logs"
    query = {"stdout": 1, "stderr": 1, "follow": 1, "timestamps": 1}
    unfinished: dict[int, _Line] = {}
    latest = 0
    with api.get(url, params=query, stream=True, timeout=None) as response:
        response.raise_for_status()
        while len(header := _exactly(response.raw, 8)) == 8:
            stream, size = struct.unpack(">BxxxL", header)
            written, _, content = _exactly(response.raw, size).partition(b" ")
            latest = max(latest, int(datetime.fromisoformat(written.decode()).timestamp() * 1000))
            complete = unfinished.setdefault(stream, _Line()).add(content)
            if batch := [(latest, line.decode(errors="replace")) for line in complete if line]:
                yield batch
    if last := [(latest, rest.decode(errors="replace")) for line in unfinished.values() if (rest := line.take())]:
        yield last


class _Line:
    """An incomplete line, kept as pieces that are joined only once."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0

    def add(self, content: bytes) -> list[bytes]:
        """Adds a piece of the stream and returns the lines that are now complete."""
        first, *others = content.split(b"\n")
        complete = []
        for piece in others:
            complete += [*self._put(first), self.take()]
            first = piece
        return [*complete, *self._put(first)]

    def take(self) -> bytes:
        """Returns the incomplete line and starts a new one."""
        whole = b"".join(self._pieces)
        self._pieces, self._size = [], 0
        return whole

    def _put(self, piece: bytes) -> list[bytes]:
        self._pieces.append(piece)
        self._size += len(piece)
        if self._size < MAX_LINE_BYTES:
            return []
        whole = self.take()
        return [whole[at : at + MAX_LINE_BYTES] for at in range(0, len(whole), MAX_LINE_BYTES)]


def _exactly(raw: Any, size: int) -> bytes:
    """Reads exactly `size` bytes, or fewer at the end of the stream."""
    content = b""
    while len(content) < size and (more := raw.read(size - len(content))):
        content += more
    return content


def _vcpus(given: str | float) -> float:
    """Converts `256` (CPU units) or `0.25 vCPU` to vCPU."""
    number, unit = _parsed(given)
    return number if unit == "vcpu" else number / _VCPU


def _mebibytes(given: str | float) -> int:
    """Converts `512` (MiB) or `0.5 GB` to MiB."""
    number, unit = _parsed(given)
    return int(number * _GIBIBYTE if unit == "gb" else number)


def _parsed(given: str | float) -> tuple[float, str]:
    text = str(given).strip().lower()
    unit = next((unit for unit in ("vcpu", "gb") if text.endswith(unit)), "")
    return float(text.removesuffix(unit)), unit
