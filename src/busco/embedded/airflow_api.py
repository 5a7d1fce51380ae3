"""A client for the parts of Airflow's stable REST API that the CLI and the tests use."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from typing import Any

import requests

from busco.embedded import processes
from busco.errors import BuscoError
from busco.orchestration.access import development_admin
from busco.settings import Settings

_PATIENCE = 60.0


def logged_in(url: str, user: str, password: str) -> requests.Session:
    """Returns an HTTP session in which a user is logged in to Airflow, as in a browser.

    Raises:
        BuscoError: Airflow rejects the login.
        OSError: Airflow doesn't respond.
    """
    browser = requests.Session()
    browser.trust_env = False  # never use a proxy for 127.0.0.1
    form = browser.get(f"{url}/login/", timeout=60)
    token = re.search(r'name="csrf_token"[^>]*value="([^"]+)"', form.text)
    if form.status_code != 200 or token is None:
        raise BuscoError(f"Airflow's login page is not available: status {form.status_code}")
    fields = {"username": user, "password": password, "csrf_token": token[1]}
    answer = browser.post(f"{url}/login/", data=fields, timeout=60)
    if answer.status_code != 200:
        raise BuscoError(f"Airflow can't log {user} in: status {answer.status_code}")
    if "/login" in answer.url:
        raise BuscoError(f"Airflow rejects the login of {user}")
    return browser


class AirflowApi:
    """A client for the embedded Airflow, logged in as the admin. Times in responses are UTC."""

    def __init__(self, settings: Settings) -> None:
        self._state, self._port = settings.state, processes.known_port(settings.state, "airflow-webserver")
        self.base = f"http://127.0.0.1:{self._port}"
        self.session = requests.Session()
        self.session.trust_env = False  # never use a proxy for 127.0.0.1
        self.session.auth = development_admin()

    def log_in(self) -> None:
        """Logs in as in a browser. Airflow checks a password in each call without this, for 0.15 s of CPU time, which
        is more than the rest of the call."""
        self._check_listener()
        self.session = logged_in(self.base, *development_admin())

    def health(self) -> dict[str, Any]:
        """Returns Airflow's health report, by service.

        Raises:
            OSError: nothing responds (requests' exceptions are OSErrors), or another process is listening on the port.
        """
        self._check_listener()
        return dict(self.session.get(f"{self.base}/health", timeout=5).json())

    def call(self, method: str, path: str, body: Any = None, **query: Any) -> Any:
        """Sends a request to a path under /api/v1 and returns the parsed response, or its text if it isn't JSON.

        Raises:
            BuscoError: Airflow rejects the request; the message includes Airflow's reason.
            OSError: see `health`.
        """
        self._check_listener()
        response = self.session.request(method, f"{self.base}/api/v1/{path}", json=body, params=query, timeout=60)
        if response.status_code >= 400:
            try:
                problem = response.json()
                reason = problem.get("detail") or problem.get("title")
            except ValueError:
                reason = response.text[:200]
            raise BuscoError(f"Airflow: {method} {path}: {response.status_code} {reason}")
        return response.json() if "json" in response.headers.get("content-type", "") else response.content.decode()

    def _check_listener(self) -> None:
        """Checks that our webserver holds the port, so that no other process receives the admin's password."""
        process = processes.find(self._state, "webserver")
        if process is None or not processes.listens(process, self._port):
            raise ConnectionError(f"Airflow's webserver isn't listening on 127.0.0.1:{self._port}; start it: busco ui")

    def trigger(self, dag_id: str, conf: dict[str, Any], run_id: str | None = None) -> str:
        """Waits until Airflow has loaded a DAG, starts a run of it, and returns the run's id.

        Raises:
            BuscoError: the DAG can't be imported (the message includes the error), Airflow doesn't load it in time, or
                Airflow rejects the run.
        """
        self.wait_for_dag(dag_id)
        body = {"conf": conf, **({"dag_run_id": run_id} if run_id else {})}
        return str(self.call("POST", f"dags/{dag_id}/dagRuns", body)["dag_run_id"])

    def wait_for_dag(self, dag_id: str, limit: float = _PATIENCE) -> dict[str, Any]:
        """Waits until Airflow has loaded a DAG, then returns the DAG's details.

        Raises:
            BuscoError: the DAG can't be imported (the message includes the error), or Airflow doesn't load it within
                `limit` seconds.
        """
        began = time.monotonic()
        while True:
            dag = self._find_dag(dag_id)
            if dag and dag["is_active"] and not dag["has_import_errors"]:
                return dag
            waited = time.monotonic() - began
            errors = self.call("GET", "importErrors")["import_errors"] if waited > limit / 2 else []
            own = [error for error in errors if dag and error["filename"] == dag["fileloc"]]
            if errors:
                error = (own or errors)[0]
                raise BuscoError(f"{error['filename']} can't be imported:\n{error['stack_trace'].strip()}")
            if waited > limit:
                raise BuscoError(f"Airflow hasn't loaded the {dag_id} DAG", "look for import errors in the UI: make ui")
            time.sleep(0.5)

    def _find_dag(self, dag_id: str) -> dict[str, Any] | None:
        found = self.call("GET", "dags", dag_id_pattern=dag_id, only_active=False, limit=100)["dags"]
        return next((dict(dag) for dag in found if dag["dag_id"] == dag_id), None)

    def dag_runs(self, dag_id: str) -> list[dict[str, Any]]:
        """Returns a DAG's newest runs, at most 100, oldest first."""
        found = self.call("GET", f"dags/{dag_id}/dagRuns", limit=100, order_by="-id")["dag_runs"]
        return list(reversed(found))

    def dag_run(self, dag_id: str, run_id: str) -> dict[str, Any]:
        return dict(self.call("GET", f"dags/{dag_id}/dagRuns/{run_id}"))

    def task_instances(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """Returns all task instances of a run, from all pages of the response."""
        found: list[dict[str, Any]] = []
        while True:
            page = self.call("GET", f"dags/{dag_id}/dagRuns/{run_id}/taskInstances", limit=100, offset=len(found))
            found += page["task_instances"]
            if len(found) >= page["total_entries"] or not page["task_instances"]:
                return found

    def clear(
        self, dag_id: str, run_id: str, task_ids: Sequence[str], downstream: bool = False, only_failed: bool = False
    ) -> None:
        """Clears tasks, like the UI's Clear button."""
        body = {
            "dry_run": False,
            "dag_run_id": run_id,
            "task_ids": list(task_ids),
            "include_downstream": downstream,
            "only_failed": only_failed,
            "reset_dag_runs": True,
        }
        self.call("POST", f"dags/{dag_id}/clearTaskInstances", body)

    def set_state(self, dag_id: str, run_id: str, task_id: str, state: str) -> None:
        """Sets the state of one task."""
        path = f"dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}"
        self.call("PATCH", path, {"dry_run": False, "new_state": state})

    def log(self, dag_id: str, run_id: str, task_id: str, try_number: int) -> str:
        path = f"dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/logs/{try_number}"
        content = self.call("GET", path, full_content="true")
        return content if isinstance(content, str) else json.dumps(content)
