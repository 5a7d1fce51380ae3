"""Starts, watches and stops runners; with BUSCO_EXECUTION=local, a runner is a process on this machine."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import subprocess
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol

from busco.environments import python, without_airflow
from busco.lake.records import Ending, Order, Pin, Runner
from busco.private import UMASK, make_private
from busco.processes import kill_tree, process_alive, this_host
from busco.settings import Settings

Say = Callable[[str], None]


class Starting(Protocol):
    """A runner that has been started but may not have registered itself yet."""

    def alive(self) -> bool: ...

    def passing(self) -> bool:
        """Whether the runner ended for a possibly temporary reason: no capacity, a Spot interruption, the network."""

    async def why(self) -> str:
        """Returns why the runner is gone, with the end of its output if the output is available."""

    async def stop(self, reason: str) -> None:
        """Stops the runner, whether or not it has registered itself."""


class CannotStart(Exception):
    """A runner can't be started, and retrying won't help; the message states why and what to do."""


class Launcher(Protocol):
    """Starts, watches and stops runners. There is one implementation for each value of BUSCO_EXECUTION."""

    async def start(self, pin: Pin, order: Order, say: Say) -> Starting:
        """Starts `busco runner` for an order; if the limit on runners is reached, reports that with `say` and waits.

        Raises:
            CannotStart: the runner can't be started, and waiting won't help.
        """

    async def resume(self, pin: Pin, order: Order, say: Say) -> Starting | None:
        """Returns the runner of an order that another triggerer, or this one before a restart, may have started.

        Returns None if this launcher can't find out whether there is such a runner.
        """

    async def discard(self, order: Order, reason: str) -> None:
        """Stops anything that may have been started for an order that has no `Starting`."""

    async def look(self, runners: Sequence[Runner], handles: Sequence[Starting]) -> Mapping[int, Ending]:
        """Returns the endings of those `runners` that are gone, by number, and refreshes the state of `handles`."""

    async def stop(self, runner: Runner, reason: str) -> None:
        """Stops a runner; it is not an error if the runner is already gone."""

    async def tail(self, runner: Runner) -> str:
        """Returns the end of a runner's output, or '' if there is none."""


def client_token(environment: str, pin: Pin, name: str, generation: int) -> str:
    """Returns 32 hexadecimal digits that identify an order. Every process that starts a runner for the order uses the
    same digits, so that ECS starts only one task."""
    return token_of(environment, pin.run, pin.epoch, pin.origin, name, generation)


def token_of(*parts: str | int) -> str:
    """Returns 32 hexadecimal digits that depend only on `parts`."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def command(pin: Pin, order: Order) -> list[str]:
    """Returns the `busco` arguments that start an order's runner; their length does not depend on the order's nodes."""
    words = ["runner", "--run", pin.run, "--epoch", str(pin.epoch)]
    return [*words, "--order", order.name, "--generation", str(order.generation)]


def start_process(settings: Settings, words: Sequence[str], role: str, out: BinaryIO) -> subprocess.Popen[bytes]:
    """Starts a `busco` command in dbt's environment, in a session of its own, so that it outlives this process.

    Args:
        role: the role that the command has as an ECS task, which it uses instead of Airflow's role.
        out: the file for the command's output.
    """
    return subprocess.Popen(
        [str(python(settings, "dbt")), "-m", "busco", *words],
        env=without_airflow(dict(os.environ)) | {"BUSCO_LOCAL_ROLE": role},
        cwd=settings.home,
        stdin=subprocess.DEVNULL,
        stdout=out,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        umask=UMASK,
    )


@dataclass
class LocalProcess:
    """A runner that is a local process, in its own session so that it outlives the process that started it."""

    process: subprocess.Popen[bytes]
    log: Path
    stopped: str = ""  # the reason, if this launcher has stopped it

    def alive(self) -> bool:
        return self.process.poll() is None

    def passing(self) -> bool:
        return False

    async def why(self) -> str:
        return tail_of(self.log)

    async def stop(self, reason: str) -> None:
        if self.alive():
            self.stopped = reason
            await asyncio.to_thread(kill_tree, self.process.pid, 10.0)


@dataclass
class LocalLauncher:
    """The launcher for BUSCO_EXECUTION=local: each runner is a process in dbt's virtual environment."""

    settings: Settings
    children: list[LocalProcess] = field(default_factory=list)
    _starting: int = 0  # processes that are being started and are not in `children` yet

    async def start(self, pin: Pin, order: Order, say: Say) -> LocalProcess:
        reported = False
        while True:
            self.children = [child for child in self.children if child.alive()]
            taken = len(self.children) + self._starting
            if taken < self.settings.max_local_runners:
                break
            if not reported:
                say(f"waiting: {taken} runners are active on this machine (BUSCO_MAX_LOCAL_RUNNERS)")
                reported = True
            await asyncio.sleep(0.5)
        # there must be no await between the check above and this line: another coroutine could take the free slot
        self._starting += 1
        starting = asyncio.create_task(self._begin(command(pin, order)))
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            # nothing else has a reference to this process, so it must be stopped here
            await (await starting).stop("the runner is no longer needed")
            raise

    async def resume(self, pin: Pin, order: Order, say: Say) -> None:  # noqa: ARG002
        # before a runner registers itself, only the process that started the runner can find it
        return None

    async def discard(self, order: Order, reason: str) -> None: ...

    async def _begin(self, words: list[str]) -> LocalProcess:
        """Starts a process from a thread.

        The thread does not change `children`, because the event loop removes ended processes from that list.
        """
        try:
            child = await asyncio.to_thread(self._start, words)
            self.children.append(child)
            return child
        finally:
            self._starting -= 1

    def _start(self, words: list[str]) -> LocalProcess:
        log = self.settings.state / "log" / "runners" / f"{uuid.uuid4().hex}.log"
        make_private(log.parent)
        with log.open("wb") as out:
            process = start_process(self.settings, [*words, "--log", str(log)], "runner", out)
        return LocalProcess(process, log)

    async def look(self, runners: Sequence[Runner], handles: Sequence[Starting]) -> dict[int, Ending]:  # noqa: ARG002
        return {runner.number: self._ending(runner) for runner in runners if not self._alive(runner)}

    def _ending(self, runner: Runner) -> Ending:
        child = self._child(runner)
        if child is not None and child.stopped:
            # the exit status is not available, since stopping a process also reaps it
            return Ending(number=runner.number, reason=f"its process was stopped: {child.stopped}")
        code = child.process.poll() if child is not None else None
        return Ending(number=runner.number, reason=process_ending(code), exit_code=code)

    def _child(self, runner: Runner) -> LocalProcess | None:
        """Returns a runner's process, if this launcher started it."""
        if runner.host != this_host(self.settings.state):
            return None
        return next((child for child in self.children if child.process.pid == runner.pid), None)

    def _alive(self, runner: Runner) -> bool:
        # a runner on another host counts as gone; if it is still alive, the entries' tokens block its writes (R4)
        return runner.host == this_host(self.settings.state) and process_alive(runner.pid, runner.started)

    async def stop(self, runner: Runner, reason: str) -> None:
        if not self._alive(runner):
            return
        if child := self._child(runner):
            await child.stop(reason)
        else:
            await asyncio.to_thread(kill_tree, runner.pid, 10.0)

    async def tail(self, runner: Runner) -> str:
        return tail_of(Path(runner.log)) if runner.log else ""


def process_ending(code: int | None = None) -> str:
    """Describes how a runner's process ended.

    Args:
        code: the process's exit status in `subprocess`'s format (negative for a signal); None if it isn't known.
    """
    if code is None:
        return "its process is gone; it may have been killed or run out of memory, or its machine may have restarted"
    if code == -signal.SIGKILL:
        return "its process was killed (signal 9), either manually or because the machine ran out of memory"
    if code < 0:
        return f"its process was terminated by signal {-code}"
    return f"its process exited on its own with exit code {code}"


def tail_of(log: Path, lines: int = 20) -> str:
    """Returns the last lines of a file, or '' if it does not exist."""
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""


_launchers: dict[tuple[str, int], Launcher] = {}


def launcher(settings: Settings) -> Launcher:
    """Returns this event loop's launcher for BUSCO_EXECUTION; all runs share it, and with it the limit on runners."""
    key = (settings.execution, id(asyncio.get_running_loop()))
    if key not in _launchers:
        if settings.execution == "local":
            _launchers[key] = LocalLauncher(settings)
        else:
            from busco.orchestration.ecs import EcsLauncher
            from busco.orchestration.slots import Slots

            _launchers[key] = EcsLauncher(settings, Slots.of_airflow(settings.max_ecs_tasks))
    return _launchers[key]
