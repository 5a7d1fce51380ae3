"""How runners are started, seen and stopped; `local` is a process on this machine."""

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
from typing import Protocol

from busco.environments import python, without_airflow
from busco.lake.records import Ending, Order, Pin, Runner
from busco.private import UMASK, make_private
from busco.processes import kill_tree, process_alive, this_host
from busco.settings import Settings

Say = Callable[[str], None]


class Starting(Protocol):
    """A runner that was started and may not have registered itself yet."""

    def alive(self) -> bool: ...

    def passing(self) -> bool:
        """Whether what has ended it may be over by now: no capacity, a spot interruption, the network."""

    async def why(self) -> str:
        """Why it is gone, and the end of its output, where that can be had."""

    async def stop(self, reason: str) -> None:
        """Ends it, whether or not it has registered itself."""


class CannotStart(Exception):
    """A runner can't be started, and trying again won't help; the text says why and what to do."""


class Launcher(Protocol):
    """Starts, sees and stops runners. One for each way of BUSCO_EXECUTION."""

    async def start(self, pin: Pin, order: Order, say: Say) -> Starting:
        """Starts `busco runner` for an order; waits for a place where the number of runners is limited, and says so.

        Raises:
            CannotStart: there is no use in waiting.
        """

    async def resume(self, pin: Pin, order: Order, say: Say) -> Starting | None:
        """The runner of an order that another triggerer, or this one in an earlier life, may have started; None where
        that can't be known."""

    async def discard(self, order: Order, reason: str) -> None:
        """Ends what may have been started for an order of which there is no `Starting`."""

    async def look(self, runners: Sequence[Runner], handles: Sequence[Starting]) -> Mapping[int, Ending]:
        """Those of `runners` that are gone, by number; what `handles` know is brought up to date."""

    async def stop(self, runner: Runner, reason: str) -> None:
        """Ends a runner; one that is gone already is no error."""

    async def tail(self, runner: Runner) -> str:
        """The end of a runner's output; '' where there is none."""


def client_token(environment: str, pin: Pin, name: str, generation: int) -> str:
    """32 hexadecimal digits: the same for all who start a runner for the same order, so that ECS starts one task."""
    return token_of(environment, pin.run, pin.epoch, pin.origin, name, generation)


def token_of(*said: str | int) -> str:
    """32 hexadecimal digits, the same for the same words."""
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:32]


def command(pin: Pin, order: Order) -> list[str]:
    """What `busco` is called with: as long for a model with a thousand tests as for one."""
    words = ["runner", "--run", pin.run, "--epoch", str(pin.epoch)]
    return [*words, "--order", order.name, "--generation", str(order.generation)]


@dataclass
class LocalProcess:
    """A runner on this machine, in a session of its own, so that it outlives whoever started it."""

    process: subprocess.Popen[bytes]
    log: Path
    stopped: str = ""  # why, if this launcher has stopped it

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
    """BUSCO_EXECUTION=local: a process in dbt's virtual environment."""

    settings: Settings
    children: list[LocalProcess] = field(default_factory=list)
    _starting: int = 0  # processes that are being started, and are not among the children yet

    async def start(self, pin: Pin, order: Order, say: Say) -> LocalProcess:
        said = False
        while True:
            self.children = [child for child in self.children if child.alive()]
            taken = len(self.children) + self._starting
            if taken < self.settings.max_local_runners:
                break
            if not said:
                say(f"waiting: {taken} runners are at work on this machine (BUSCO_MAX_LOCAL_RUNNERS)")
                said = True
            await asyncio.sleep(0.5)
        # in the turn of the loop in which it was seen that there is room: others look in the next one
        self._starting += 1
        starting = asyncio.create_task(self._begin(command(pin, order)))
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            # nobody else knows of it
            await (await starting).stop("it is not wanted any more")
            raise

    async def resume(self, pin: Pin, order: Order, say: Say) -> None:  # noqa: ARG002
        # a process that has not registered itself is known to whoever started it only
        return None

    async def discard(self, order: Order, reason: str) -> None: ...

    async def _begin(self, words: list[str]) -> LocalProcess:
        """Starts a process in a thread. Only the loop changes the list of children: it also drops those that ended."""
        try:
            child = await asyncio.to_thread(self._start, words)
            self.children.append(child)
            return child
        finally:
            self._starting -= 1

    def _start(self, words: list[str]) -> LocalProcess:
        log = self.settings.state / "log" / "runners" / f"{uuid.uuid4().hex}.log"
        make_private(log.parent)
        interpreter = str(python(self.settings, "dbt"))
        with log.open("wb") as out:
            process = subprocess.Popen(
                [interpreter, "-m", "busco", *words, "--log", str(log)],
                # the role that it has as an ECS task, in place of Airflow's
                env=without_airflow(dict(os.environ)) | {"BUSCO_LOCAL_ROLE": "runner"},
                cwd=self.settings.home,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                umask=UMASK,
            )
        return LocalProcess(process, log)

    async def look(self, runners: Sequence[Runner], handles: Sequence[Starting]) -> dict[int, Ending]:  # noqa: ARG002
        return {runner.number: self._ending(runner) for runner in runners if not self._alive(runner)}

    def _ending(self, runner: Runner) -> Ending:
        child = self._child(runner)
        if child is not None and child.stopped:
            # whoever stops a process also takes its exit status
            return Ending(number=runner.number, reason=f"its process was stopped: {child.stopped}")
        code = child.process.poll() if child is not None else None
        return Ending(number=runner.number, reason=process_ending(code), exit_code=code)

    def _child(self, runner: Runner) -> LocalProcess | None:
        """A runner's process, if this launcher has started it."""
        if runner.host != this_host(self.settings.state):
            return None
        return next((child for child in self.children if child.process.pid == runner.pid), None)

    def _alive(self, runner: Runner) -> bool:
        # what can't be seen from here counts as gone: should it live, the entries' tokens keep its writes out (R4)
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
    """How a runner's process has ended, in words.

    Args:
        code: its exit status as `subprocess` has it, a signal as a negative number; None where it isn't known.
    """
    if code is None:
        return (
            "its process is gone, and nothing says why: it was killed, ran out of memory, or its machine was restarted"
        )
    if code == -signal.SIGKILL:
        return "its process was killed (signal 9): by somebody, or because the machine ran out of memory"
    if code < 0:
        return f"its process was ended by signal {-code}"
    return f"its process ended by itself, with exit code {code}"


def tail_of(log: Path, lines: int = 20) -> str:
    """The last lines of a file; '' where there is none."""
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""


_launchers: dict[tuple[str, int], Launcher] = {}


def launcher(settings: Settings) -> Launcher:
    """The launcher of this event loop for BUSCO_EXECUTION; one for all runs, since it bounds their number."""
    key = (settings.execution, id(asyncio.get_running_loop()))
    if key not in _launchers:
        if settings.execution == "local":
            _launchers[key] = LocalLauncher(settings)
        else:
            from busco.orchestration.ecs import EcsLauncher
            from busco.orchestration.slots import Slots

            _launchers[key] = EcsLauncher(settings, Slots.of_airflow(settings.max_ecs_tasks))
    return _launchers[key]
