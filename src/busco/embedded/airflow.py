"""Airflow on one machine without Docker: PostgreSQL, scheduler, triggerer and webserver, on 127.0.0.1 only."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from busco import orchestration
from busco.embedded import keeper, processes
from busco.embedded.airflow_api import AirflowApi
from busco.embedded.keys import secret
from busco.embedded.postgres import DATABASE, Postgres
from busco.embedded.postgres import NAME as POSTGRES
from busco.errors import BuscoError
from busco.orchestration.access import ON_CALL, ON_CALL_MAY, development_admin
from busco.settings import Settings, env_file, read_env_file

Say = Callable[[str], None]
SERVICES = ("scheduler", "triggerer", "webserver")
WEB = "airflow-webserver"
_LIMIT = 180.0
# named, not imported: it imports gunicorn
_ACCESS_LOG = "--logger-class busco.orchestration.access_log.Logger"


def up(settings: Settings, say: Say) -> str:
    """Starts what isn't running and waits until all of it is healthy; gives the UI's URL.

    Safe to run twice, and after a kill at any point.

    Raises:
        BuscoError: something doesn't come up; with the end of its log.
    """
    state = settings.state
    with processes.locked(state, "airflow-up"):
        postgres = Postgres(state)
        if postgres.is_of_earlier_version():  # it restarts, without which no service goes on
            _end_services(state, say)
        if processes.find(state, POSTGRES) is None:
            say("starting PostgreSQL")
        postgres.up()
        try:
            _up(settings, postgres, say)
        except _Vanished:  # killed just before, and still there when we looked
            _up(settings, postgres, say)
    return url(settings)


class _Vanished(BuscoError):
    """A service that ran when we came ended before it was healthy."""


def _up(settings: Settings, postgres: Postgres, say: Say) -> None:
    state = settings.state
    if processes.find(state, "webserver") is None:
        # what a killed one left still has its port
        processes.stop(state, "webserver")
        processes.pick_port(state, WEB)
    variables = environment(settings)
    _migrate(settings, postgres, variables, say)
    missing = [service for service in SERVICES if processes.find(state, service) is None]
    _retire(postgres, missing)
    for service in missing:
        _forget_pid(settings, service)
        own = _webserver_files(state) if service == "webserver" else {}
        processes.start(state, service, command(service), {**variables, **own}, settings.home)
    if missing:
        say(f"starting Airflow's {', '.join(missing)}")
    api = AirflowApi(settings)
    for service in SERVICES:
        process = processes.find(state, service)
        try:
            if process is None:
                raise BuscoError(f"Airflow's {service} ended while starting", f"see {state / 'log' / service}.log")
            processes.wait_until(partial(healthy, api, service), process, service, _LIMIT, every=0.25)
        except BuscoError as error:
            if service not in missing and processes.find(state, service) is None:
                raise _Vanished(error.message, error.hint) from None
            raise
    # one that was killed just before we came counts as healthy until its last heartbeat is half a minute old
    for service in SERVICES:
        if processes.find(state, service) is None:
            raise _Vanished(f"Airflow's {service} ended while starting", f"see {state / 'log' / service}.log")
    # last: whoever has started Airflow may have parsed the project meanwhile
    if settings.keep_graph:
        processes.start(state, keeper.NAME, *keeper.command(settings), settings.home)


def down(settings: Settings, say: Say) -> None:
    """Ends all of it, PostgreSQL last; its database stays. A start that is under way ends first."""
    state = settings.state
    if not (state / "run").is_dir():
        return
    with processes.locked(state, "airflow-up"):
        processes.stop(state, keeper.NAME, grace=10)
        _end_services(state, say)
        was_there = processes.find(state, POSTGRES) is not None
        Postgres(state).down()
        if was_there:
            say("ended PostgreSQL")


def _end_services(state: Path, say: Say) -> None:
    with ThreadPoolExecutor(len(SERVICES)) as pool:
        ended = list(pool.map(lambda service: processes.stop(state, service, grace=10), SERVICES))
    for service, was_there in zip(SERVICES, ended, strict=True):
        if was_there:
            say(f"ended Airflow's {service}")


def status(settings: Settings) -> list[tuple[str, str]]:
    """Each service: `running (pid N)`, `unhealthy (pid N)`, or `stopped`.

    Scheduler and triggerer are judged by what the webserver says of them, if it answers.
    """
    rows = []
    report = _report(AirflowApi(settings))
    for name in (POSTGRES, *SERVICES, *([keeper.NAME] if settings.keep_graph else [])):
        process = processes.find(settings.state, name)
        if process is None:
            rows.append((name, "stopped"))
            continue
        if name == POSTGRES:
            good = Postgres(settings.state).ready()
        elif name == "webserver":
            good = report is not None
        elif name == keeper.NAME:
            good = True
        else:
            good = report is None or report.get(name, {}).get("status") == "healthy"
        rows.append((name, f"{'running' if good else 'unhealthy'} (pid {process.pid})"))
    return rows


def url(settings: Settings) -> str:
    """Where the UI is, or would be."""
    return f"http://127.0.0.1:{processes.known_port(settings.state, WEB)}"


def healthy(api: AirflowApi, service: str) -> bool:
    """Whether Airflow's own health report says so of a service; the webserver's is that it answers."""
    report = _report(api)
    if report is None:
        return False
    return service == "webserver" or report.get(service, {}).get("status") == "healthy"


def _report(api: AirflowApi) -> dict[str, Any] | None:
    try:
        return api.health()
    except (OSError, ValueError):
        return None


def environment(settings: Settings) -> dict[str, str]:
    """The environment of every process of Airflow's here, and of its command line.

    What is secret in it (the database's password, keys) is kept below the state folder, in files of mode 600.
    """
    state = settings.state
    home = state / "airflow"
    home.mkdir(parents=True, exist_ok=True)
    fernet = base64.urlsafe_b64encode(hashlib.sha256(secret(state / "secrets" / "fernet").encode()).digest()).decode()
    options = {
        "CORE__DAGS_FOLDER": str(settings.home / "dags"),
        "CORE__PLUGINS_FOLDER": str(settings.home / "plugins"),
        "CORE__EXECUTOR": "LocalExecutor",
        # worker processes that wait from the start: few tasks need one, the models live in the triggerer
        "CORE__PARALLELISM": "4",
        "CORE__LOAD_EXAMPLES": "False",
        "CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "CORE__FERNET_KEY": fernet,
        # a DAG file that takes longer is broken; Cosmos takes a second or two for 1,000 models
        "CORE__DAGBAG_IMPORT_TIMEOUT": "60",
        # not the full name, which asks a name server: slow or impossible on a laptop that is offline
        "CORE__HOSTNAME_CALLABLE": "socket.gethostname",
        "DATABASE__SQL_ALCHEMY_CONN": Postgres(state).dsn.replace("postgresql://", "postgresql+psycopg2://"),
        "DATABASE__LOAD_DEFAULT_CONNECTIONS": "False",
        "WEBSERVER__WEB_SERVER_HOST": "127.0.0.1",
        "WEBSERVER__WEB_SERVER_PORT": str(processes.known_port(state, WEB)),
        "WEBSERVER__BASE_URL": url(settings),
        "WEBSERVER__CONFIG_FILE": str(Path(orchestration.__file__).with_name("webserver_config.py")),
        "WEBSERVER__SECRET_KEY": secret(state / "secrets" / "webserver"),
        "WEBSERVER__WORKERS": "1",
        "WEBSERVER__EXPOSE_CONFIG": "False",
        "WEBSERVER__INSTANCE_NAME": "Busco (embedded)",
        "API__AUTH_BACKENDS": "busco.orchestration.basic_auth,airflow.api.auth.backend.session",
        "SCHEDULER__ALLOWED_RUN_ID_PATTERN": "^[A-Za-z0-9_.~:+-]{1,200}$",
        # A DAG file is parsed when it is younger than its last parse; `busco dbt parse` makes it so. A thousand models
        # cost half a second of CPU each time, and nothing else that is parsed changes unseen.
        "SCHEDULER__FILE_PARSING_SORT_MODE": "modified_time",
        "SCHEDULER__MIN_FILE_PROCESS_INTERVAL": "60",
        # how soon a new DAG file, and a task whose upstream is done, is seen: a laptop has few of either
        "SCHEDULER__DAG_DIR_LIST_INTERVAL": "10",
        "SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.2",
        "SCHEDULER__PARSING_PROCESSES": "1",
        "CORE__MIN_SERIALIZED_DAG_UPDATE_INTERVAL": "2",
        "CORE__MIN_SERIALIZED_DAG_FETCH_INTERVAL": "2",
        "LOGGING__BASE_LOG_FOLDER": str(state / "log" / "airflow"),
        "SCHEDULER__CHILD_PROCESS_LOG_DIRECTORY": str(state / "log" / "airflow" / "scheduler"),
        "LOGGING__LOGGING_CONFIG_CLASS": "busco.embedded.airflow_logging.LOGGING_CONFIG",
        "LOGGING__COLORED_CONSOLE_LOG": "False",
        "LOGGING__DAG_PROCESSOR_MANAGER_LOG_LOCATION": str(state / "log" / "airflow" / "dag_processor.log"),
        # the models' tasks live in the triggerer: as many as a graph is wide
        "TRIGGERER__DEFAULT_CAPACITY": "1000",
        "USAGE_DATA_COLLECTION__ENABLED": "False",
        "COSMOS__ENABLE_CACHE": "False",
        "COSMOS__ENABLE_TELEMETRY": "False",
    }
    own = {f"AIRFLOW__{name}": value for name, value in options.items()}
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AIRFLOW", "PYTHONPATH", "VIRTUAL_ENV"))
    }
    # it has a role here too, from before any of its code reads our settings
    role = read_env_file(env_file(state, "airflow")) if settings.platform == "embedded" else {}
    return {
        **kept,
        **role,
        **own,
        "BUSCO_LOCAL_ROLE": "airflow",
        "AIRFLOW_HOME": str(home),
        "BUSCO_HOME": str(settings.home),
        "BUSCO_STATE_DIR": str(state),
        "BUSCO_AIRFLOW_URL": url(settings),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "SCARF_ANALYTICS": "false",
        "DO_NOT_TRACK": "1",
        "PYTHONUNBUFFERED": "1",
        # Airflow and its dependencies warn at every start of what their next versions will change
        "PYTHONWARNINGS": "ignore",
    }


def command(service: str) -> list[str]:
    """The command line of one of SERVICES."""
    if service == "triggerer":
        return [sys.executable, "-m", "busco.orchestration.triggerer", "--skip-serve-logs"]
    airflow = str(Path(sys.executable).parent / "airflow")
    # the webserver reads logs from this machine's files; a log server would listen on every address
    return [airflow, service] if service == "webserver" else [airflow, service, "--skip-serve-logs"]


def _webserver_files(state: Path) -> dict[str, str]:
    """Keeps the webserver's files below the state folder.

    Its cache lies there under a fixed name: in the machine's own, another user's costs each start half a minute. The
    scheduler keeps the usual folder: it has a socket there, whose path may not be long.
    gunicorn's control socket, which nobody here uses, would lie in the user's home, one for all checkouts.
    """
    folder = state / "airflow" / "tmp"
    folder.mkdir(parents=True, exist_ok=True)
    return {"TMPDIR": str(folder), "GUNICORN_CMD_ARGS": f"--no-control-socket {_ACCESS_LOG}"}


def _retire(postgres: Postgres, services: Sequence[str]) -> None:
    """Writes down that former schedulers and triggerers are gone, where none runs.

    Airflow believes one that was killed alive for another half a minute: its tasks and triggers would wait for as
    long (tasks of a worker even five minutes), and it would count as the healthy one.
    """
    jobs = [f"{service.capitalize()}Job" for service in services]
    with closing(postgres.connect()) as connection, connection, connection.cursor() as cursor:
        cursor.execute(
            "update job set state = 'failed', end_date = now() where state = 'running' and job_type = any(%s)", [jobs]
        )


def _forget_pid(settings: Settings, service: str) -> None:
    """Airflow refuses to start beside a pid file, however old."""
    for file in (settings.state / "airflow").glob(f"airflow-{service}*.pid"):
        file.unlink()


def _migrate(settings: Settings, postgres: Postgres, variables: dict[str, str], say: Say) -> None:
    """Airflow's tables and roles, once for each version of Airflow and of the roles, and the admin with the password of
    this start.

    The database itself says which it was made for, so that a new one is never taken for one that is made.
    """
    packages = ("apache-airflow", "apache-airflow-providers-fab")
    roles = hashlib.sha256(repr(sorted(ON_CALL_MAY)).encode()).hexdigest()[:8]
    wanted = ", ".join(
        [*(f"{name} {importlib.metadata.version(name)}" for name in packages), f"role {ON_CALL} {roles}"]
    )
    ask = "select shobj_description(oid, 'pg_database') from pg_database where datname = current_database()"
    with closing(postgres.connect()) as connection, connection, connection.cursor() as cursor:
        cursor.execute(ask)
        made_for = cursor.fetchone()
        is_made = made_for == (wanted,)
        if is_made and _admin_is(cursor, *development_admin()):
            return
    first = made_for is None or made_for[0] is None
    if is_made:
        say("setting the admin's password")
    else:
        say("making Airflow's database (the first time only)" if first else "bringing Airflow's database up to date")
    command = [sys.executable, "-m", "busco.orchestration.access"]
    # the default is known to everybody: it listens on this machine only
    name, password = development_admin()
    own = {**variables, "AIRFLOW_ADMIN_USERNAME": name, "AIRFLOW_ADMIN_PASSWORD": password}
    made = subprocess.run(command, env=own, cwd=settings.home, capture_output=True, text=True, check=False)
    if made.returncode != 0:
        tail = "\n".join((made.stdout + made.stderr).splitlines()[-20:])
        raise BuscoError(f"Airflow's database can't be made:\n{tail}")
    with closing(postgres.connect()) as connection, connection, connection.cursor() as cursor:
        cursor.execute(f"comment on database {DATABASE} is %s", [wanted])


def _admin_is(cursor: Any, name: str, password: str) -> bool:
    """Whether the admin of that name is there and has this password."""
    from werkzeug.security import check_password_hash

    cursor.execute("select password from ab_user where username = %s", [name])
    row = cursor.fetchone()
    return row is not None and check_password_hash(row[0] or "", password)
