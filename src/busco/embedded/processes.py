"""Background processes of the embedded platform: started once, known by pid and start time, ended by id."""

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
    """A process that we started: `started` is the kernel's creation time (seconds since the epoch), so that a
    recycled pid is never taken for ours."""

    name: str
    pid: int
    started: float
    log: str

    def alive(self) -> bool:
        return process_alive(self.pid, self.started)


def record_path(state: Path, name: str) -> Path:
    return state / "run" / f"{name}.json"


def find(state: Path, name: str) -> Process | None:
    """The running process of that name, or None."""
    try:
        process = Process(**json.loads(record_path(state, name).read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    return process if process.alive() else None


# The child waits here until its record is written: killed between the two, we leave no process that nobody knows.
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
    """Starts a process in a session of its own, output to `<state>/log/<name>.log`, and records it.

    Its log and what it writes are for its user alone. Starting what runs already gives back the running one; what is
    left of one that died is ended first. `user` is the uid to run it as, with that user's own group; None: ours.
    `descriptors` are open files of ours that it gets as well.
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
    # closing it without a word, as our own death does, ends the child
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
    """Ends the process of that name and all of its children: SIGTERM, after `grace` seconds SIGKILL.

    Returns whether there was one, or something left of one that died.
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
    """Waits until processes have ended, at most `limit` seconds; gives those that have not.

    A zombie has ended: where the first process of a container reaps late or never, it stays one.
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
    """Ends what is left of a recorded process that is gone: its children, if it was killed alone, still are in the
    session that it led. Returns whether there were any."""
    try:
        record = Process(**json.loads(record_path(state, name).read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return False
    # A session's number is not given away while somebody is in it; after a restart of the machine, or where another
    # process has it as its pid, it is no longer ours.
    if record.started < psutil.boot_time():
        return False
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(record.pid)
        if abs(process.create_time() - record.started) >= 1.0:
            return False
        # killed, and not quite gone: it still has its locks and ports
        wait_ended([process], 10)
    left = []
    for pid in psutil.pids():
        with contextlib.suppress(OSError, psutil.NoSuchProcess):
            if pid != record.pid and os.getsid(pid) == record.pid:
                left += wait_ended([psutil.Process(pid)], 0)
    for wanted in (signal.SIGTERM, signal.SIGKILL):
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(wanted)
        if not wait_ended(left, 5):
            break
    return bool(left)


def wait_until(ready: Callable[[], bool], process: Process, what: str, limit: float, every: float = 0.1) -> None:
    """Waits until `ready()`.

    Raises:
        BuscoError: the process ended first, or `limit` seconds passed; with the end of its log.
    """
    deadline = time.monotonic() + limit
    while not ready():
        if not process.alive():
            raise BuscoError(f"{what} ended while starting\n{log_tail(process)}", f"the whole log: {process.log}")
        if time.monotonic() > deadline:
            raise BuscoError(f"{what} was not ready after {limit:.0f} s\n{log_tail(process)}", f"see {process.log}")
        time.sleep(every)


def log_tail(process: Process, lines: int = 15) -> str:
    try:
        return "\n".join(Path(process.log).read_text(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return ""


def pick_port(state: Path, name: str, addresses: Sequence[str] = ("127.0.0.1",)) -> int:
    """A port for `name` that is free at all of the addresses: the one that it had last time if that is, else a new one.

    Kept in `<state>/ports.json`, so that addresses survive a restart.
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
    """A port at all of the addresses that no other user gets from now on, whether `name` runs or not, until
    `release_port`: the one that it had last time, or a new one.

    A process that does nothing has it bound, and `bound` binds it beside that one: Linux lets processes of one user do
    so, and nobody else (socket(7), SO_REUSEPORT).

    Args:
        fixed: the one port that it may be; 0 where any will do.

    Raises:
        BuscoError: another program has the port that it must be: the fixed one, or the one that what runs here knows.
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
                    f"port {last} of {' or '.join(addresses)} is another program's", "end that, or say another"
                )
            if sockets is None and who:
                raise BuscoError(
                    f"port {last} is now another program's, and {', '.join(who)} would go on asking there",
                    "end them, and start again: busco down",
                )
        while sockets is None:
            sockets = bound(0, addresses)
        for one in sockets:
            ours.enter_context(one)
        port = int(sockets[0].getsockname()[1])
        stop(state, _holder(name), grace=1)
        # of every program's that sleeps
        command = ["/bin/sleep", str(2**31 - 1)]
        start(state, _holder(name), command, {}, Path("/"), descriptors=[one.fileno() for one in sockets])
        if not fixed:
            path.write_text(json.dumps({**ports, name: port}, indent=1))
        return port


def release_port(state: Path, name: str) -> None:
    """Gives up what `hold_port` holds."""
    stop(state, _holder(name), grace=1)


def bound(port: int, addresses: Sequence[str]) -> list[socket.socket] | None:
    """Sockets that are bound to a port of the addresses, where nobody but this user has it; None where somebody does.
    Port 0 is any one."""
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
    """The names of all processes of the state folder that run."""
    return sorted(file.stem for file in (state / "run").glob("*.json") if find(state, file.stem) is not None)


def listens(process: Process, port: int) -> bool:
    """Whether it is this process, or a descendant of it, that listens at 127.0.0.1:`port`.

    Whoever else has an account on this machine may have taken the port, and answer as ours would: this is asked before
    anything is sent there that he could use.
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
    # In a container, root without CAP_SYS_PTRACE may not look into a process of another user's, which PostgreSQL then
    # is; whose the socket is, everybody may know.
    with contextlib.suppress(psutil.Error):
        return bool(process.uids().effective == _owner_of_listener(port))
    return False


def _owner_of_listener(port: int) -> int | None:
    """The uid of whoever listens at 127.0.0.1:`port`, of /proc/net/tcp (proc_pid_net(5)); None where nobody does."""
    wanted = f"{int.from_bytes(socket.inet_aton('127.0.0.1'), sys.byteorder):08X}:{port:04X}"
    with contextlib.suppress(OSError):
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            words = line.split()
            if words[1] == wanted and words[3] == "0A":  # TCP_LISTEN
                return int(words[7])
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
    """Holds an exclusive lock of that name between the processes of this machine; freed when the holder dies."""
    path = state / "run" / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def known_port(state: Path, name: str) -> int:
    """The port that `pick_port` gave `name` last; 0 where it never did."""
    path = state / "ports.json"
    return int(json.loads(path.read_text()).get(name, 0)) if path.is_file() else 0
