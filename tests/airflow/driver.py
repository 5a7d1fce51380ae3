"""Operates a running platform as its users do: through the command, Airflow's API and files."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import requests

from busco.aws import client
from busco.embedded import airflow
from busco.embedded.airflow_api import AirflowApi, logged_in
from busco.lake import releases
from busco.lake.layout import EnvironmentLayout
from busco.lake.objects import ObjectStore
from busco.lake.records import Release
from busco.settings import get_settings
from tests import warm
from tests.loopback import PROXY_PORT

DAG = "lakehouse"
ENVIRONMENT = EnvironmentLayout("prod")
ROOT = Path(__file__).parents[2]
ORDERS = "id,customer,amount,day,n\na,x,1.50,2018-01-01,1\nb,y,2.25,2018-01-02,2\n"


@dataclass
class Driver:
    home: Path
    browsers: dict[str, requests.Session] = field(default_factory=dict)

    @property
    def api(self) -> AirflowApi:
        """Airflow's API with a login that is kept: checking a password costs more than the rest of a call."""
        made = AirflowApi(get_settings())
        if made.base not in self.browsers:
            self.browsers[made.base] = logged_in(made.base, "admin", "admin")
        made.session = self.browsers[made.base]
        return made

    @property
    def store(self) -> ObjectStore:
        settings = get_settings()
        return ObjectStore(client("s3", settings), settings.lake_bucket)

    def busco(self, *arguments: str) -> str:
        done = warm.run("-m", "busco", *arguments, cwd=self.home, environment=os.environ)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def write(self, path: str, text: str) -> str:
        """Writes a file below home and returns its previous content, or '' if there was none."""
        file = self.home / path
        file.parent.mkdir(parents=True, exist_ok=True)
        before = file.read_text() if file.exists() else ""
        file.write_text(text)
        return before

    def live(self) -> Release | None:
        live = releases.read_live(self.store, ENVIRONMENT)
        return live.release if live else None

    # -- runs ---------------------------------------------------------------------------------------------------------

    def start(self, dag: str = DAG, **conf: Any) -> str:
        return self.api.trigger(dag, conf)

    def states(self, run: str, dag: str = DAG) -> dict[str, str]:
        return {task["task_id"]: str(task["state"]) for task in self.api.task_instances(dag, run)}

    def tries(self, run: str) -> dict[str, int]:
        return {task["task_id"]: int(task["try_number"]) for task in self.api.task_instances(DAG, run)}

    def durations(self, run: str) -> dict[str, float]:
        """Returns the duration of each task's last try, in seconds."""
        return {task["task_id"]: float(task["duration"]) for task in self.api.task_instances(DAG, run)}

    def finish(self, run: str, dag: str = DAG, limit: float = 300) -> str:
        """Waits until a run has ended and returns its state."""
        self.wait(lambda: self.api.dag_run(dag, run)["state"] in ("success", "failed"), limit)
        return str(self.api.dag_run(dag, run)["state"])

    def green(self, run: str, dag: str = DAG, limit: float = 300) -> None:
        """Waits until a run has ended, and fails with the failed tasks' logs unless it succeeded."""
        if self.finish(run, dag, limit) != "success":
            failed = [task for task, state in self.states(run, dag).items() if state == "failed"]
            raise AssertionError("\n".join(f"{task} failed:\n{self.log(run, task, dag)}" for task in failed))

    def run(self, dag: str = DAG, **conf: Any) -> tuple[str, str]:
        """Triggers a run and waits until it has ended. Returns its id and its state."""
        run = self.start(dag, **conf)
        return run, self.finish(run, dag)

    def log(self, run: str, task: str, dag: str = DAG) -> str:
        """Returns the log of a task's last try."""
        attempt = next(t["try_number"] for t in self.api.task_instances(dag, run) if t["task_id"] == task)
        return self.api.log(dag, run, task, attempt)

    def clear(self, run: str, *tasks: str, downstream: bool = True) -> None:
        self.api.clear(DAG, run, tasks, downstream=downstream)
        self.wait(lambda: self.api.dag_run(DAG, run)["state"] != "failed", 30)

    def wait(self, ready: Callable[[], bool], limit: float = 180) -> None:
        deadline = time.monotonic() + limit
        pause = threading.Event()
        while not ready():
            assert time.monotonic() < deadline, "the condition was not met within the time limit"
            pause.wait(0.5)


@contextmanager
def platform(
    home: Path,
    project: Path,
    files: str | None = ORDERS,
    prepare: Callable[[Path], None] = lambda _: None,
    **variables: str,
) -> Iterator[Driver]:
    """Runs an embedded platform below `home`, with a dbt project and ingested files, and nothing built yet.

    Args:
        files: the orders to ingest, as CSV; None ingests nothing.
        prepare: called with `home` before anything starts.
        variables: environment variables in addition to those that every such platform has.
    """
    shutil.copytree(project, home / "dbt_project")
    shutil.copytree(ROOT / "dags", home / "dags", ignore=shutil.ignore_patterns("__pycache__"))
    (home / "plugins").mkdir()
    (home / "deploy").symlink_to(ROOT / "deploy")
    prepare(home)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("BUSCO_", "AWS_", "AIRFLOW_"))}
    own = {
        "BUSCO_HOME": str(home),
        "BUSCO_AWS_PORT": str(PROXY_PORT),
        "BUSCO_DBT_PYTHON": str(ROOT / ".venv-dbt/bin/python"),
        "BUSCO_AIRFLOW_PYTHON": str(ROOT / ".venv/bin/python"),
        # a test that saves a file triggers the parsing itself
        "BUSCO_KEEP_GRAPH": "false",
        # a test starts its own runs
        "BUSCO_LISTEN": "false",
        **variables,
    }
    with mock.patch.dict(os.environ, {**kept, **own}, clear=True):
        get_settings.cache_clear()
        made = Driver(home)
        try:
            made.busco("aws", "up")
            get_settings.cache_clear()
            if files is not None:
                made.write("in/orders.csv", files)
                made.busco("ingest", str(home / "in"))
            airflow.up(get_settings(), lambda _: None)
            yield made
        finally:
            airflow.down(get_settings(), lambda _: None)
            made.busco("aws", "down")
            get_settings.cache_clear()
