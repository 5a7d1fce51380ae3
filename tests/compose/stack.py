"""The platform in Docker Compose for tests: a copy of the checkout with its own ports and Compose project name."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from busco.embedded.airflow_api import logged_in

ROOT = Path(__file__).parents[2]
DAG = "lakehouse"
TABLES = (Path(__file__).parent / "tables.py").read_text()
RESULTS = (Path(__file__).parent / "results.py").read_text()
SERVICES = (
    "postgres", "redis", "local-aws", "airflow-webserver", "airflow-scheduler", "airflow-worker", "airflow-triggerer",
    "events", "flower", "starter",
)  # fmt: skip


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Stack:
    """A platform below `home`; it shares nothing but the images with other platforms."""

    home: Path
    project: str
    # HTTP sessions by URL, user and password
    logins: dict[tuple[str, str, str], requests.Session] = field(default_factory=dict)

    @classmethod
    def copied(cls, home: Path, project: str) -> Stack:
        """Copies all files that Git tracks or would add."""
        listed = subprocess.run(
            ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        for name in listed.stdout.splitlines():
            if (ROOT / name).is_file():
                (home / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, home / name)
        return cls(home, project)

    @classmethod
    def made(cls, home: Path, project: str) -> Stack:
        """Copies the checkout and gives it its own .env, its own ports, and a user id that exists in no image."""
        stack = cls.copied(home, project)
        # as a user does: copy the example, which local_build.sh fills in before it builds
        shutil.copy(home / ".env.example", home / ".env")
        stack.call("scripts/make_env.sh", "--fill")
        stack.set(AIRFLOW_UID=1234, AIRFLOW_PORT=free_port(), FLOWER_PORT=free_port(), BUSCO_AWS_PORT=free_port())
        return stack

    def set(self, **variables: object) -> None:
        """Sets variables in .env."""
        env = self.home / ".env"
        text = env.read_text()
        for name, value in variables.items():
            text = re.sub(rf"^(# )?{name}=.*$", f"{name}={value}", text, flags=re.MULTILINE)
        env.write_text(text)

    def value(self, name: str) -> str:
        found = re.search(rf"^{name}=(.*)$", (self.home / ".env").read_text(), re.MULTILINE)
        assert found, name
        return found[1]

    def tables(self) -> str:
        """Returns a line for each table of the live release: its name, its number of rows and a digest of them."""
        return self.compose("exec", "-T", "local-aws", "python", "-", given=TABLES)

    def built(self, run: str) -> dict[str, int]:
        """Returns how often each model of a run was built, according to the runners' records.

        The run must be the live release.
        """
        live, *lines = self.compose("exec", "-T", "local-aws", "python", "-", DAG, run, given=RESULTS).splitlines()
        assert live == "live"
        return {node: int(times) for node, times in (line.split() for line in lines)}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.value('AIRFLOW_PORT')}"

    # -- Docker -------------------------------------------------------------------------------------------------------

    def call(
        self, *command: str, check: bool = True, limit: float = 600, given: str | None = None, **variables: str
    ) -> str:
        """Runs a command in the copy, with `given` as its standard input; returns its output."""
        done = self._done(command, limit, given, variables)
        assert done.returncode == 0 or not check, done.stdout + done.stderr
        return done.stdout

    def _done(
        self, command: Sequence[str], limit: float = 600, given: str | None = None, variables: Mapping[str, str] = {}
    ) -> subprocess.CompletedProcess[str]:
        own = {**os.environ, "COMPOSE_PROJECT_NAME": self.project, **variables}
        return subprocess.run(
            command, cwd=self.home, env=own, capture_output=True, text=True, check=False, timeout=limit, input=given
        )

    def compose(self, *arguments: str, check: bool = True, limit: float = 600, given: str | None = None) -> str:
        return self.call("docker", "compose", *arguments, check=check, limit=limit, given=given)

    def failing(self, *arguments: str) -> str:
        """Runs a Compose command that has to fail; returns the output of both streams."""
        done = self._done(["docker", "compose", *arguments])
        assert done.returncode != 0, done.stdout
        return done.stdout + done.stderr

    def container(self, service: str) -> str:
        return self.compose("ps", "--all", "--quiet", service).strip()

    def states(self) -> dict[str, str]:
        """Returns the health of each service's container, or its state if it has no health check."""
        found = {}
        for service in SERVICES:
            state = self.call(
                "docker", "inspect", "--format", "{{.State.Status}} {{.State.Health.Status}}", self.container(service)
            )
            found[service] = state.split()[-1]
        return found

    def tasks(self) -> list[str]:
        """Returns the existing containers of ECS tasks."""
        ours = ["--filter", "label=com.amazonaws.ecs.task-arn", "--filter", f"network={self.network}"]
        found = self.call("docker", "ps", "--all", "--quiet", *ours)
        return found.split()

    @property
    def network(self) -> str:
        """The network of ECS tasks."""
        return f"{self.project}_tasks"

    # -- Airflow ------------------------------------------------------------------------------------------------------

    def api(self, method: str, path: str, body: Any = None) -> Any:
        """Calls Airflow with a login that is kept: checking a password costs more than the rest of a call."""
        key = (self.url, self.value("AIRFLOW_ADMIN_USERNAME"), self.value("AIRFLOW_ADMIN_PASSWORD"))
        for _ in range(2):
            if key not in self.logins:
                self.logins[key] = logged_in(*key)
            answer = self.logins[key].request(method, f"{self.url}/{path}", json=body, timeout=60)
            if answer.status_code != 401:
                break
            del self.logins[key]  # the database was created again since the login
        assert answer.status_code < 400, answer.text
        return answer.json() if "json" in answer.headers.get("content-type", "") else answer.text

    def start(self, dag: str = DAG, **conf: Any) -> str:
        return str(self.api("POST", f"api/v1/dags/{dag}/dagRuns", {"conf": conf})["dag_run_id"])

    def runs(self) -> list[dict[str, Any]]:
        return list(self.api("GET", f"api/v1/dags/{DAG}/dagRuns")["dag_runs"])

    def task_states(self, run: str) -> dict[str, str]:
        found = self.api("GET", f"api/v1/dags/{DAG}/dagRuns/{run}/taskInstances?limit=100")["task_instances"]
        return {task["task_id"]: str(task["state"]) for task in found}

    def finish(self, run: str, limit: float = 400, dag: str = DAG) -> str:
        """Waits for a run to end; returns its state."""
        path = f"api/v1/dags/{dag}/dagRuns/{run}"
        self.wait(lambda: self.api("GET", path)["state"] in ("success", "failed"), limit)
        return str(self.api("GET", path)["state"])

    def log(self, run: str, task: str, attempt: int = 1) -> str:
        return str(self.api("GET", f"api/v1/dags/{DAG}/dagRuns/{run}/taskInstances/{task}/logs/{attempt}"))

    def survives(self, fault: Callable[[], object]) -> None:
        """Starts a run of all models and calls `fault` while its container is running.

        The run must succeed and be published, with each model built once, the same tables as before and no container
        left.
        """
        before = self.tables()
        run = self.start(full_refresh=True)
        self.wait(lambda: bool(self.tasks()))
        fault()
        self.compose("up", "--detach", "--wait")
        assert self.finish(run) == "success", self.task_states(run)
        assert set(self.task_states(run).values()) == {"success"}
        assert self.tables() == before
        models = {task.split(".")[1] for task in self.task_states(run) if task.endswith(".run")}
        assert self.built(run) == {f"model.busco.{model}": 1 for model in models}
        self.wait(lambda: not self.tasks(), 60)

    @staticmethod
    def wait(ready: Callable[[], bool], limit: float = 120) -> None:
        deadline = time.monotonic() + limit
        pause = threading.Event()
        while not ready():
            assert time.monotonic() < deadline, f"the condition was not met within {limit} s"
            pause.wait(0.5)


def tables_of_demo(folder: Path, *arguments: str) -> str:
    """Returns what `Stack.tables` returns, for a demo below `folder`: processes on this machine, without Docker."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("BUSCO_", "AWS_", "AIRFLOW"))}
    own = {**kept, "BUSCO_STATE_DIR": str(folder / "state"), "BUSCO_KEEP_GRAPH": "false", "BUSCO_LISTEN": "false"}
    try:
        subprocess.run([ROOT / ".venv/bin/busco", "demo", *arguments], env=own, check=True, timeout=600)
        return subprocess.run(
            [ROOT / ".venv-dbt/bin/python", "-"], input=TABLES, env=own, check=True, capture_output=True, text=True
        ).stdout
    finally:
        subprocess.run([ROOT / ".venv/bin/busco", "down"], env=own, check=True, timeout=120)
