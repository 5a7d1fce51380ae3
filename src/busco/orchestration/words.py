"""What ECS says of a task's end, in words that say what to do."""

from __future__ import annotations


def stop_reason(
    stop_code: str, stopped_reason: str, container_reason: str = "", exit_code: int | None = None, memory_mib: int = 0
) -> str:
    """Why a task has ended."""
    if "OutOfMemory" in container_reason:
        return f"it ran out of memory: its task had {memory_mib} MiB"
    code = f", exit code {exit_code}" if exit_code is not None else ""
    return f"{stop_code or 'stopped'}: {container_reason or stopped_reason}{code}"
