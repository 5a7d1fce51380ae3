"""Airflow on one machine without Docker: PostgreSQL, scheduler, triggerer and webserver, on 127.0.0.1 only."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from busco.embedded import processes
from busco.embedded.airflow_api import AirflowApi
from busco.embedded.postgres import NAME as POSTGRES
from busco.embedded.postgres import Postgres, secret
from busco.errors import BuscoError
from busco.settings import Settings

Say = Callable[[str], None]
SERVICES = ("scheduler", "triggerer", "webserver")
WEB = "airflow-webserver"
_LIMIT = 180.0


def up(settings: Settings, say: Say) -> str:
    """Starts what isn't running and waits until all of it is healthy; gives the UI's URL.

    Safe to run twice, and after a kill at any point.

    Raises:
        BuscoError: something doesn't come up; with the end of its log.
    """
    state = settings.state
    with processes.locked(state, "airflow-up"):
        postgres = Postgres(state)
        if processes.find(state, POSTGRES) is None:
            say("starting PostgreSQL")
        postgres.up()
        if processes.find(state, "webserver") is None:
            processes.pick_port(state, WEB)
        variables = environment(settings)
        _migrate(settings, variables, say)
        started = []
        for service in SERVICES:
            if processes.find(state, service) is None:
                started.append(service)
                _forget_pid(settings, service)
                processes.start(state, service, _command(service), variables, settings.home)
        if started:
            say(f"starting Airflow's {', '.join(started)}")
        api = AirflowApi(settings)
        for service in SERVICES:
            process = processes.find(state, service)
            if process is None:
                raise BuscoError(f"Airflow's {service} ended while starting", f"see {state / 'log' / service}.log")
            processes.wait_until(lambda service=service: healthy(api, service), process, service, _LIMIT, every=0.25)
    return url(settings)


def down(settings: Settings, say: Say) -> None:
    """Ends all of it, PostgreSQL last; its database stays."""
    for service in reversed(SERVICES):
        if processes.stop(settings.state, service):
            say(f"ended Airflow's {service}")
    if processes.find(settings.state, POSTGRES) is not None:
        Postgres(settings.state).down()
        say("ended PostgreSQL")


def status(settings: Settings) -> list[tuple[str, str]]:
    """Each service: `running (pid N)`, `unhealthy (pid N)`, or `stopped`."""
    rows = []
    api = AirflowApi(settings)
    for name in (POSTGRES, *SERVICES):
        process = processes.find(settings.state, name)
        if process is None:
            rows.append((name, "stopped"))
            continue
        good = Postgres(settings.state).ready() if name == POSTGRES else healthy(api, name)
        rows.append((name, f"{'running' if good else 'unhealthy'} (pid {process.pid})"))
    return rows


def url(settings: Settings) -> str:
    """Where the UI is, or would be."""
    return f"http://127.0.0.1:{processes.known_port(settings.state, WEB)}"


def healthy(api: AirflowApi, service: str) -> bool:
    """Whether Airflow's own health report says so of a service; the webserver's is that it answers."""
    try:
        report = api.health()
    except (OSError, ValueError, urllib.error.URLError):
        return False
    return service == "webserver" or report.get(service, {}).get("status") == "healthy"


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
        "CORE__PARALLELISM": "4",
        "CORE__LOAD_EXAMPLES": "False",
        "CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "CORE__FERNET_KEY": fernet,
        # a DAG file that takes longer is broken; Cosmos takes a second or two for 1,000 models
        "CORE__DAGBAG_IMPORT_TIMEOUT": "60",
        "DATABASE__SQL_ALCHEMY_CONN": Postgres(state).dsn.replace("postgresql://", "postgresql+psycopg2://"),
        "DATABASE__LOAD_DEFAULT_CONNECTIONS": "False",
        "WEBSERVER__WEB_SERVER_HOST": "127.0.0.1",
        "WEBSERVER__WEB_SERVER_PORT": str(processes.known_port(state, WEB)),
        "WEBSERVER__BASE_URL": url(settings),
        "WEBSERVER__SECRET_KEY": secret(state / "secrets" / "webserver"),
        "WEBSERVER__WORKERS": "1",
        "WEBSERVER__EXPOSE_CONFIG": "False",
        "WEBSERVER__INSTANCE_NAME": "Busco (embedded)",
        "API__AUTH_BACKENDS": "airflow.api.auth.backend.basic_auth,airflow.api.auth.backend.session",
        # how soon an edited DAG, and a task whose upstream is done, is seen: a laptop has few of either
        "SCHEDULER__MIN_FILE_PROCESS_INTERVAL": "5",
        "SCHEDULER__DAG_DIR_LIST_INTERVAL": "10",
        "SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.2",
        "SCHEDULER__PARSING_PROCESSES": "1",
        "CORE__MIN_SERIALIZED_DAG_UPDATE_INTERVAL": "5",
        "CORE__MIN_SERIALIZED_DAG_FETCH_INTERVAL": "2",
        "LOGGING__BASE_LOG_FOLDER": str(state / "log" / "airflow"),
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
    return {
        **kept,
        **own,
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


def _command(service: str) -> list[str]:
    airflow = str(Path(sys.executable).parent / "airflow")
    # the webserver reads logs from this machine's files; a log server would listen on every address
    return [airflow, service] if service == "webserver" else [airflow, service, "--skip-serve-logs"]


def _forget_pid(settings: Settings, service: str) -> None:
    """Airflow refuses to start beside a pid file, however old."""
    for file in (settings.state / "airflow").glob(f"airflow-{service}*.pid"):
        file.unlink()


def _migrate(settings: Settings, variables: dict[str, str], say: Say) -> None:
    """Airflow's tables and the user admin, once for each version of Airflow."""
    versions = [importlib.metadata.version(name) for name in ("apache-airflow", "apache-airflow-providers-fab")]
    done = settings.state / "airflow" / f"migrated-{'-'.join(versions)}"
    if done.exists():
        return
    say("making Airflow's database (the first time only)")
    command = [sys.executable, "-m", "busco.embedded.airflow_database"]
    made = subprocess.run(command, env=variables, cwd=settings.home, capture_output=True, text=True, check=False)
    if made.returncode != 0:
        tail = "\n".join((made.stdout + made.stderr).splitlines()[-20:])
        raise BuscoError(f"Airflow's database can't be made:\n{tail}")
    done.touch()
