"""Starts, finds and stops the embedded platform's background processes, identified by pid and start time."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pwd
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from busco.errors import BuscoError
from busco.private import UMASK, make_private
from busco.processes import process_alive


@dataclass(frozen=True)
class Process:
    """A process that we started.

    `started` is its creation time from the kernel (seconds since the Unix epoch), which distinguishes it from a later
    process with the same pid.
    """

    name: str
    pid: int
    started: float
    log: str

    def alive(self) -> bool:
        return process_alive(self.pid, self.started)


def record_path(state: Path, name: str) -> Path:
    return state / "run" / f"{name}.json"


def find(state: Path, name: str) -> Process | None:
    """Returns the running process with that name, or None."""
    try:
        process = Process(**json.loads(record_path(state, name).read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    return process if process.alive() else None


# The child waits for a line on stdin, which we send once the child's record is written. If we are killed before that,
# the child ends, so there is never a process without a record.
_GATE = ("/bin/sh", "-c", 'read -r go && exec "$@" </dev/null', "sh")


def start(
    state: Path,
    name: str,
    command: Sequence[str],
    env: Mapping[str, str],
    cwd: Path,
    user: int | None = None,
    descriptors: Sequence[int] = (),
) -> Process:
    """Starts a process in its own session, with its output in `<state>/log/<name>.log`, and records it.

    Only the process's user can read its log and the files that it writes. If a process with this name is already
    running, it is returned instead. Children that a dead process with this name left behind are ended first.

    Args:
        user: the uid to run the process as, with that user's primary group; None for our own.
        descriptors: file descriptors that the process inherits.
    """
    if running := find(state, name):
        return running
    _end_session(state, name)
    log = state / "log" / f"{name}.log"
    make_private(log.parent)
    with log.open("ab") as out:
        os.fchmod(out.fileno(), 0o600)
        child = subprocess.Popen(
            [*_GATE, *command],
            env=dict(env),
            cwd=cwd,
            stdout=out,
            stderr=subprocess.STDOUT,
            stdin=subprocess.PIPE,
            start_new_session=True,
            umask=UMASK,
            pass_fds=descriptors,
            user=user,
            group=None if user is None else pwd.getpwuid(user).pw_gid,
            extra_groups=None if user is None else [],
        )
    assert child.stdin is not None
    # If stdin closes before a line is written, as when we are killed, the child exits.
    with contextlib.suppress(BrokenPipeError), child.stdin as gate:
        process = Process(name, child.pid, psutil.Process(child.pid).create_time(), str(log))
        path = record_path(state, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(".tmp")
        scratch.write_text(json.dumps(asdict(process)))
        scratch.rename(path)
        gate.write(b"go\n")
    return process


def stop(state: Path, name: str, grace: float = 20.0) -> bool:
    """Stops the process with that name and all of its children: SIGTERM, then SIGKILL after `grace` seconds.

    Returns:
        Whether there was such a process, or children that a dead one left behind.
    """
    process = find(state, name)
    if process is not None:
        with contextlib.suppress(psutil.NoSuchProcess):
            root = psutil.Process(process.pid)
            family = [root, *root.children(recursive=True)]
            root.send_signal(signal.SIGTERM)
            for survivor in wait_ended(family, grace):
                with contextlib.suppress(psutil.NoSuchProcess):
                    survivor.kill()
            wait_ended(family, 5)
    left = _end_session(state, name)
    with contextlib.suppress(FileNotFoundError):
        record_path(state, name).unlink()
    return process is not None or left


def wait_ended(family: Sequence[psutil.Process], limit: float) -> list[psutil.Process]:
    """Waits up to `limit` seconds for processes to end; returns those that have not.

    A zombie counts as ended: in a container whose first process reaps children late or never, it stays a zombie.
    """

    def lives(process: psutil.Process) -> bool:
        try:
            return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False

    deadline = time.monotonic() + limit
    while (left := [process for process in family if lives(process)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def _end_session(state: Path, name: str) -> bool:
    """Ends the children that a recorded process left behind, which are still in the session that it led.

    Returns:
        Whether there were any.
    """
    try:
        record = Process(**json.loads(record_path(state, name).read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return False
    # The kernel does not reuse a session id while a process is in the session. After a reboot, or if another process
    # has that id as its pid, the session is no longer ours.
    if record.started < psutil.boot_time():
        return False
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(record.pid)
        if abs(process.create_time() - record.started) >= 1.0:
            return False
        # The recorded process was killed but has not ended yet, so it may still hold locks and ports.
        wait_ended([process], 10)
    left = []
    for pid in psutil.pids():
        with contextlib.suppress(OSError, psutil.NoSuchProcess):
            if pid != record.pid and os.getsid(pid) == record.pid:
                left += wait_ended([psutil.Process(pid)], 0)
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        if not wait_ended(left, 5):
            break
    return bool(left)


def wait_until(ready: Callable[[], bool], process: Process, what: str, limit: float, every: float = 0.1) -> None:
    """Waits until `ready()` returns true.

    Raises:
        BuscoError: the process ended first, or `limit` seconds passed; the message includes the end of the log.
    """
    deadline = time.monotonic() + limit
    while not ready():
        if not process.alive():
            raise BuscoError(f"{what} exited while starting\n{log_tail(process)}", f"see {process.log}")
        if time.monotonic() > deadline:
            raise BuscoError(f"{what} was not ready after {limit:.0f} s\n{log_tail(process)}", f"see {process.log}")
        time.sleep(every)


def log_tail(process: Process, lines: int = 15) -> str:
    try:
        return "\n".join(Path(process.log).read_text(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return ""


def pick_port(state: Path, name: str, addresses: Sequence[str] = ("127.0.0.1",)) -> int:
    """Picks a port for `name` that is free on all of the addresses: the previous port if possible, else a new one.

    The port is kept in `<state>/ports.json`, so that it stays the same after a restart.
    """
    path = state / "ports.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(state, "ports"):
        ports: dict[str, int] = json.loads(path.read_text()) if path.is_file() else {}
        if name in ports and all(port_is_free(ports[name], address) for address in addresses):
            return ports[name]
        taken = {port for other, port in ports.items() if other != name}
        while True:
            with socket.socket() as probe:
                probe.bind((addresses[0], 0))
                port = int(probe.getsockname()[1])
            if port not in taken and all(port_is_free(port, address) for address in addresses[1:]):
                break
        ports[name] = port
        path.write_text(json.dumps(ports, indent=1))
        return port


def hold_port(state: Path, name: str, addresses: Sequence[str] = ("127.0.0.1",), fixed: int = 0) -> int:
    """Reserves a port for `name` on all of the addresses: the previous port if possible, else a new one.

    Until `release_port` is called, no other user can bind the port, whether or not `name` is running, because an idle
    process keeps the port bound. `name` itself can still bind it with `bound`, because Linux lets several processes of
    the same user, and no others, share a port (socket(7), SO_REUSEPORT).

    Args:
        fixed: the required port; 0 for any.

    Raises:
        BuscoError: another program uses the required port: the fixed one, or the previous one while processes that
            connect to it are running.
    """
    path = state / "ports.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with locked(state, "ports"), contextlib.ExitStack() as ours:
        ports: dict[str, int] = json.loads(path.read_text()) if path.is_file() else {}
        sockets, last = None, fixed or ports.get(name, 0)
        if last:
            sockets = bound(last, addresses)
            who = [other for other in running(state) if other not in (name, _holder(name))]
            if sockets is None and fixed:
                raise BuscoError(
                    f"port {last} on {' or '.join(addresses)} is used by another program",
                    "stop that program, or choose another port",
                )
            if sockets is None and who:
                raise BuscoError(
                    f"port {last} is now used by another program, and {', '.join(who)} would keep connecting to it",
                    "stop everything (busco down) and start again",
                )
        while sockets is None:
            sockets = bound(0, addresses)
        for one in sockets:
            ours.enter_context(one)
        port = int(sockets[0].getsockname()[1])
        stop(state, _holder(name), grace=1)
        command = ["/bin/sleep", str(2**31 - 1)]  # the longest that every implementation of sleep accepts
        start(state, _holder(name), command, {}, Path("/"), descriptors=[one.fileno() for one in sockets])
        if not fixed:
            path.write_text(json.dumps({**ports, name: port}, indent=1))
        return port


def release_port(state: Path, name: str) -> None:
    """Releases the port that `hold_port` reserved."""
    stop(state, _holder(name), grace=1)


def bound(port: int, addresses: Sequence[str]) -> list[socket.socket] | None:
    """Returns sockets bound to a port on the addresses, or None if another user or program is using it.

    With port 0, any free port is used, the same for all addresses.
    """
    made: list[socket.socket] = []
    for address in addresses:
        made.append(socket.socket())
        made[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            made[-1].bind((address, port))
        except OSError:
            for one in made:
                one.close()
            return None
        port = port or made[-1].getsockname()[1]
    return made


def _holder(name: str) -> str:
    return f"{name}-port"


def running(state: Path) -> list[str]:
    """Returns the names of all running processes that are recorded in the state folder."""
    return sorted(file.stem for file in (state / "run").glob("*.json") if find(state, file.stem) is not None)


def listens(process: Process, port: int) -> bool:
    """Whether this process or a descendant of it listens on 127.0.0.1:`port`.

    Another user of this machine could take the port and imitate our process, so call this before sending anything
    to the port that such a user could misuse.
    """
    try:
        root = psutil.Process(process.pid)
        family = [root, *root.children(recursive=True)] if process.alive() else []
    except psutil.NoSuchProcess:
        return False
    return any(_has_listener(one, port) for one in family)


def _has_listener(process: psutil.Process, port: int) -> bool:
    try:
        return any(
            one.status == psutil.CONN_LISTEN and one.laddr == ("127.0.0.1", port)
            for one in process.net_connections(kind="inet4")
        )
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        pass
    # In a container, root without CAP_SYS_PTRACE can't inspect other users' processes, and PostgreSQL runs as another
    # user there. But any process can find out which user owns the socket.
    with contextlib.suppress(psutil.Error):
        return bool(process.uids().effective == _owner_of_listener(port))
    return False


def _owner_of_listener(port: int) -> int | None:
    """Returns the uid of the user whose process listens on 127.0.0.1:`port`; None if no process does.

    The uid is read from /proc/net/tcp (proc_pid_net(5)).
    """
    address = f"{int.from_bytes(socket.inet_aton('127.0.0.1'), sys.byteorder):08X}:{port:04X}"
    with contextlib.suppress(OSError):
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[1] == address and fields[3] == "0A":  # TCP_LISTEN
                return int(fields[7])
    return None


def port_is_free(port: int, address: str = "127.0.0.1") -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return False
        return True


@contextlib.contextmanager
def locked(state: Path, name: str) -> Iterator[None]:
    """Holds an exclusive lock with that name among this machine's processes; it is released if the holder dies."""
    path = state / "run" / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def known_port(state: Path, name: str) -> int:
    """Returns the port last recorded for `name`; 0 if there is none."""
    path = state / "ports.json"
    return int(json.loads(path.read_text()).get(name, 0)) if path.is_file() else 0
