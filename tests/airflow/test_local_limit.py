"""BUSCO_MAX_LOCAL_RUNNERS limits the runners on a machine, however many orders arrive at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from busco.lake.records import Order, Pin, utc_now
from busco.orchestration.launch import LocalLauncher, LocalProcess
from busco.settings import Settings

PIN = Pin(run="r.x", epoch=1, environment="prod", base=None, bronze={}, manifest_hash="h", created_at=utc_now())
LIMIT = 2


class Process:
    """A fake process that lives until `is_over` is set."""

    pid, is_over = 0, False

    def poll(self) -> int | None:
        return 0 if self.is_over else None


class Machine:
    """A launcher with fake processes, each of which takes `seconds` to start or fails to start."""

    def __init__(self, tmp_path: Path) -> None:
        self.launcher = LocalLauncher(Settings(home=tmp_path, max_local_runners=LIMIT))
        self.processes: list[Process] = []
        self.seconds, self.failures, self.most = 0.005, 0, 0
        self.messages: list[str] = []

    def _start(self, command: list[str]) -> LocalProcess:
        time.sleep(self.seconds)
        if self.failures:
            self.failures -= 1
            raise OSError("no more processes")
        made: Any = Process()
        self.processes.append(made)
        self.most = max(self.most, len(self.living()))
        return LocalProcess(made, Path(command[-1]))

    def living(self) -> list[Process]:
        return [process for process in self.processes if not process.is_over]

    def start(self, number: int) -> Awaitable[LocalProcess]:
        order = Order(name=f"m{number}/1", generation=1, kind="solo")
        return self.launcher.start(PIN, order, self.messages.append)


def play(machine: Machine, story: Callable[[], Awaitable[None]]) -> None:
    async def soon(seconds: float, sleep: Any = asyncio.sleep) -> None:
        await sleep(min(seconds, 0.002))

    async def bounded() -> None:
        async with asyncio.timeout(20):
            await story()

    with mock.patch.object(machine.launcher, "_start", machine._start), mock.patch.object(asyncio, "sleep", soon):
        asyncio.run(bounded())


def test_orders_in_one_iteration_of_the_event_loop_do_not_exceed_the_limit(tmp_path: Path) -> None:
    machine = Machine(tmp_path)

    async def story() -> None:
        starts = [asyncio.ensure_future(machine.start(number)) for number in range(10)]
        while not all(start.done() for start in starts):
            await asyncio.sleep(0)
            if len(machine.living()) == LIMIT:
                assert len([child for child in machine.launcher.children if child.alive()]) <= LIMIT
                machine.living()[0].is_over = True  # type: ignore[misc]

    play(machine, story)
    assert len(machine.processes) == 10
    assert machine.most == LIMIT
    assert any("BUSCO_MAX_LOCAL_RUNNERS" in line for line in machine.messages)


def test_a_failed_or_cancelled_start_does_not_count_towards_the_limit(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.failures = LIMIT

    async def story() -> None:
        for number in range(LIMIT):
            with pytest.raises(OSError, match="no more processes"):
                await machine.start(number)
        stopped = list[str]()

        async def stop(child: LocalProcess, reason: str) -> None:
            stopped.append(reason)
            child.process.is_over = True  # type: ignore[attr-defined]

        with mock.patch.object(LocalProcess, "stop", stop):
            for number in range(LIMIT):
                cancelled = asyncio.ensure_future(machine.start(number))
                await asyncio.sleep(0)
                cancelled.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await cancelled
        assert len(stopped) == LIMIT
        await asyncio.gather(*(machine.start(number) for number in range(LIMIT)))

    play(machine, story)
    assert len(machine.living()) == LIMIT
