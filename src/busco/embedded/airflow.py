"""Runs Airflow on one machine without Docker: PostgreSQL, scheduler, triggerer and webserver, on 127.0.0.1 only."""

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
from busco.orchestration.service_health import obstacle, unhealthy
from busco.settings import Settings, env_file, read_env_file

Say = Callable[[str], None]
SERVICES = ("scheduler", "triggerer", "webserver")
WEB = "airflow-webserver"
EVENTS = "events"  # the events service, which needs Airflow's database but is no part of Airflow
_LIMIT = 180.0
# The class is referenced by name, because importing it here would import gunicorn.
_ACCESS_LOG = "--logger-class busco.orchestration.access_log.Logger"


def up(settings: Settings, say: Say) -> str:
    """Starts every service that isn't running, waits until all are healthy, and returns the UI's URL.

    Safe to call twice, and to call again after being killed at any point.

    Raises:
        BuscoError: a service doesn't start; the message includes the end of its log.
    """
    state = settings.state
    with processes.locked(state, "airflow-up"):
        postgres = Postgres(state)
        if postgres.is_of_earlier_version():  # PostgreSQL will be restarted, and the services can't run without it
            _end_services(state, say)
        if processes.find(state, POSTGRES) is None:
            say("starting PostgreSQL")
        postgres.up()
        try:
            _up(settings, postgres, say)
        except _Vanished:  # a service was killed just before this call, but was still listed as running
            _up(settings, postgres, say)
    return url(settings)


class _Vanished(BuscoError):
    """A service that was already running exited before it became healthy."""


def _up(settings: Settings, postgres: Postgres, say: Say) -> None:
    state = settings.state
    if processes.find(state, "webserver") is None:
        # Processes that a killed webserver left behind can still be listening on its port.
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
                raise BuscoError(f"Airflow's {service} exited while starting", f"see {state / 'log' / service}.log")
            processes.wait_until(partial(healthy, api, service), process, service, _LIMIT, every=0.25)
        except BuscoError as error:
            if service not in missing and processes.find(state, service) is None:
                raise _Vanished(error.message, error.hint) from None
            raise
    # If a service was killed just before this call, Airflow reports it as healthy until its last heartbeat is 30 s old.
    for service in SERVICES:
        if processes.find(state, service) is None:
            raise _Vanished(f"Airflow's {service} exited while starting", f"see {state / 'log' / service}.log")
    # without a queue, there is no local AWS
    if settings.listen and variables.get("BUSCO_EVENTS_QUEUE"):
        own = {"AIRFLOW__DATABASE__SQL_ALCHEMY_POOL_SIZE": "2"}
        words = [sys.executable, "-m", "busco", "events", "listen"]
        processes.start(state, EVENTS, words, {**variables, **own}, settings.home)
    # The keeper starts last: the caller may have parsed the project in the meantime, so the keeper needn't parse it
    # again.
    if settings.keep_graph:
        processes.start(state, keeper.NAME, *keeper.command(settings), settings.home)


def down(settings: Settings, say: Say) -> None:
    """Stops all services, PostgreSQL last, and keeps the database. First waits for any start in progress to finish."""
    state = settings.state
    if not (state / "run").is_dir():
        return
    with processes.locked(state, "airflow-up"):
        processes.stop(state, keeper.NAME, grace=10)
        processes.stop(state, EVENTS, grace=10)
        _end_services(state, say)
        was_running = processes.find(state, POSTGRES) is not None
        Postgres(state).down()
        if was_running:
            say("stopped PostgreSQL")


def _end_services(state: Path, say: Say) -> None:
    with ThreadPoolExecutor(len(SERVICES)) as pool:
        ended = list(pool.map(lambda service: processes.stop(state, service, grace=10), SERVICES))
    for service, was_running in zip(SERVICES, ended, strict=True):
        if was_running:
            say(f"stopped Airflow's {service}")


def status(settings: Settings) -> list[tuple[str, str]]:
    """Returns each service with its status: `running (pid N)`, `unhealthy (pid N)`, or `stopped`.

    The scheduler's and the triggerer's health comes from the webserver's health report, if the webserver responds.
    """
    rows = []
    report = _report(AirflowApi(settings))
    # without a queue, the events service is not started
    listens = settings.listen and bool(read_env_file(env_file(settings.state, "airflow")).get("BUSCO_EVENTS_QUEUE"))
    further = [name for name, wanted in {EVENTS: listens, keeper.NAME: settings.keep_graph}.items() if wanted]
    for name in (POSTGRES, *SERVICES, *further):
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
        elif name == EVENTS:
            good = not (unhealthy(settings.state, EVENTS) or obstacle(settings.state, EVENTS))
        else:
            good = report is None or report.get(name, {}).get("status") == "healthy"
        rows.append((name, f"{'running' if good else 'unhealthy'} (pid {process.pid})"))
    return rows


def url(settings: Settings) -> str:
    """Returns the UI's URL, whether or not the UI is running."""
    return f"http://127.0.0.1:{processes.known_port(settings.state, WEB)}"


def healthy(api: AirflowApi, service: str) -> bool:
    """Whether Airflow's health report lists a service as healthy; the webserver is healthy if it responds at all."""
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
    """Returns the environment for every embedded Airflow process and for Airflow's command line.

    The secrets in it (the database password and the keys) are stored under the state folder, in files with mode 600.
    """
    state = settings.state
    home = state / "airflow"
    home.mkdir(parents=True, exist_ok=True)
    fernet = base64.urlsafe_b64encode(hashlib.sha256(secret(state / "secrets" / "fernet").encode()).digest()).decode()
    options = {
        "CORE__DAGS_FOLDER": str(settings.home / "dags"),
        "CORE__PLUGINS_FOLDER": str(settings.home / "plugins"),
        "CORE__EXECUTOR": "LocalExecutor",
        # The number of worker processes, all started up front. Few tasks need one: model tasks run in the triggerer.
        "CORE__PARALLELISM": "4",
        "CORE__LOAD_EXAMPLES": "False",
        "CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        # By default, Airflow silently skips files that don't contain the word "airflow", even if they define a DAG by
        # calling `lakehouse_dag`.
        "CORE__DAG_DISCOVERY_SAFE_MODE": "False",
        "CORE__FERNET_KEY": fernet,
        # Seconds. A DAG file that takes longer to import is broken: Cosmos takes a second or two for 1,000 models.
        "CORE__DAGBAG_IMPORT_TIMEOUT": "60",
        # Looking up the fully qualified host name requires a name server; on an offline laptop, that is slow or fails.
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
        # As in config/airflow.cfg
        "SCHEDULER__FILE_PARSING_SORT_MODE": "modified_time",
        "SCHEDULER__MIN_FILE_PROCESS_INTERVAL": "300",
        # Seconds until Airflow notices a new DAG file, or a task whose upstream tasks are done. Frequent checks are
        # cheap, because a laptop has few of either.
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
        # Model tasks run in the triggerer; this is how many can run at once.
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
    # Airflow has an AWS role on the embedded platform too. The role's variables must be set before any of Airflow's
    # code reads our settings.
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
        # Airflow and its dependencies print deprecation warnings at every start.
        "PYTHONWARNINGS": "ignore",
    }


def command(service: str) -> list[str]:
    """Returns the command line of a service in SERVICES."""
    if service == "triggerer":
        return [sys.executable, "-m", "busco.orchestration.triggerer", "--skip-serve-logs"]
    airflow = str(Path(sys.executable).parent / "airflow")
    # The webserver reads logs from local files. A log server is not needed, and would listen on every address.
    return [airflow, service] if service == "webserver" else [airflow, service, "--skip-serve-logs"]


def _webserver_files(state: Path) -> dict[str, str]:
    """Returns the variables that keep the webserver's temporary files under the state folder.

    The webserver's cache has a fixed name. In the system's temporary folder, a cache that belongs to another user
    delays each start by half a minute. The scheduler uses the system's folder, because the path of the scheduler's
    socket must be short. gunicorn's control socket is turned off, because it isn't used here and would be created in
    the user's home folder, which all checkouts share.
    """
    folder = state / "airflow" / "tmp"
    folder.mkdir(parents=True, exist_ok=True)
    return {"TMPDIR": str(folder), "GUNICORN_CMD_ARGS": f"--no-control-socket {_ACCESS_LOG}"}


def _retire(postgres: Postgres, services: Sequence[str]) -> None:
    """Marks the jobs of services that are no longer running as failed in Airflow's database.

    Airflow considers a killed job alive for another half minute. Until then, the job's tasks and triggers would wait (a
    worker's tasks for as long as five minutes), and the health report would show the dead job as healthy.
    """
    jobs = [f"{service.capitalize()}Job" for service in services]
    with closing(postgres.connect()) as connection, connection, connection.cursor() as cursor:
        cursor.execute(
            "update job set state = 'failed', end_date = now() where state = 'running' and job_type = any(%s)", [jobs]
        )


def _forget_pid(settings: Settings, service: str) -> None:
    """Deletes a service's pid files: Airflow refuses to start a service that has one, however old the file is."""
    for file in (settings.state / "airflow").glob(f"airflow-{service}*.pid"):
        file.unlink()


def _migrate(settings: Settings, postgres: Postgres, variables: dict[str, str], say: Say) -> None:
    """Creates or upgrades Airflow's tables and roles, once per version of each, and sets the admin's password.

    The versions are recorded in the database itself, so that a new database is never mistaken for one that is already
    set up.
    """
    packages = ("apache-airflow", "apache-airflow-providers-fab")
    roles = hashlib.sha256(repr(sorted(ON_CALL_MAY)).encode()).hexdigest()[:8]
    expected = ", ".join(
        [*(f"{name} {importlib.metadata.version(name)}" for name in packages), f"role {ON_CALL} {roles}"]
    )
    query = "select shobj_description(oid, 'pg_database') from pg_database where datname = current_database()"
    with closing(postgres.connect()) as connection, connection, connection.cursor() as cursor:
        cursor.execute(query)
        recorded = cursor.fetchone()
        is_current = recorded == (expected,)
        if is_current and _admin_is(cursor, *development_admin()):
            return
    first = recorded is None or recorded[0] is None
    if is_current:
        say("setting the admin's password")
    else:
        say("creating Airflow's database (first start only)" if first else "upgrading Airflow's database")
    command = [sys.executable, "-m", "busco.orchestration.access"]
    # The default password is public, which is acceptable because Airflow listens on this machine only.
    name, password = development_admin()
    own = {**variables, "AIRFLOW_ADMIN_USERNAME": name, "AIRFLOW_ADMIN_PASSWORD": password}
    done = subprocess.run(command, env=own, cwd=settings.home, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-20:])
        raise BuscoError(f"Airflow's database can't be set up:\n{tail}")
    with closing(postgres.connect()) as connection, connection, connection.cursor() as cursor:
        cursor.execute(f"comment on database {DATABASE} is %s", [expected])


def _admin_is(cursor: Any, name: str, password: str) -> bool:
    """Whether the admin exists and has this password."""
    from werkzeug.security import check_password_hash

    cursor.execute("select password from ab_user where username = %s", [name])
    row = cursor.fetchone()
    return row is not None and check_password_hash(row[0] or "", password)
