"""How runners are started, seen and stopped; `local` is a process on this machine."""

from __future__ import annotations

import asyncio
import os
import subprocess
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from busco.environments import python, without_airflow
from busco.lake.records import Runner
from busco.processes import kill_tree, process_alive, this_host
from busco.settings import Settings


class Starting(Protocol):
    """A runner that was started and may not have registered itself yet."""

    def alive(self) -> bool: ...

    def tail(self) -> str:
        """The end of its output, where it can be had."""

    async def stop(self) -> None:
        """Ends it, whether or not it has registered itself."""


class Launcher(Protocol):
    """Starts, sees and stops runners. One per BUSCO_EXECUTION."""

    async def start(self, arguments: Sequence[str]) -> Starting:
        """Starts `busco runner <arguments>`; waits for a place where the number of runners is limited."""

    async def alive(self, runner: Runner) -> bool: ...

    async def stop(self, runner: Runner) -> None:
        """Ends a runner; one that is gone already is no error."""

    def tail(self, runner: Runner) -> str: ...


@dataclass
class LocalProcess:
    """A runner on this machine, in a session of its own, so that it outlives whoever started it."""

    process: subprocess.Popen[bytes]
    log: Path

    def alive(self) -> bool:
        return self.process.poll() is None

    def tail(self) -> str:
        return tail_of(self.log)

    async def stop(self) -> None:
        if self.alive():
            await asyncio.to_thread(kill_tree, self.process.pid, 10.0)


@dataclass
class LocalLauncher:
    """BUSCO_EXECUTION=local: a process in dbt's virtual environment."""

    settings: Settings
    children: list[LocalProcess] = field(default_factory=list)

    async def start(self, arguments: Sequence[str]) -> LocalProcess:
        while True:
            self.children = [child for child in self.children if child.alive()]
            if len(self.children) < self.settings.max_local_runners:
                break
            await asyncio.sleep(0.5)
        return await asyncio.to_thread(self._start, list(arguments))

    def _start(self, arguments: list[str]) -> LocalProcess:
        log = self.settings.state / "log" / "runners" / f"{uuid.uuid4().hex}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        interpreter = str(python(self.settings, "dbt"))
        with log.open("wb") as out:
            process = subprocess.Popen(
                [interpreter, "-m", "busco", "runner", *arguments, "--log", str(log)],
                env=without_airflow(dict(os.environ)),
                cwd=self.settings.home,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        child = LocalProcess(process, log)
        self.children.append(child)
        return child

    async def alive(self, runner: Runner) -> bool:
        # what can't be seen from here counts as gone: should it live, the entries' tokens keep its writes out (R4)
        return runner.host == this_host(self.settings.state) and process_alive(runner.pid, runner.started)

    async def stop(self, runner: Runner) -> None:
        if await self.alive(runner):
            await asyncio.to_thread(kill_tree, runner.pid, 10.0)

    def tail(self, runner: Runner) -> str:
        return tail_of(Path(runner.log)) if runner.log else ""


def tail_of(log: Path, lines: int = 20) -> str:
    """The last lines of a file; '' where there is none."""
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""


_launchers: dict[str, Launcher] = {}


def launcher(settings: Settings) -> Launcher:
    """The launcher of this process for BUSCO_EXECUTION; one for all runs, since it bounds their number."""
    if settings.execution not in _launchers:
        _launchers[settings.execution] = LocalLauncher(settings)
    return _launchers[settings.execution]
