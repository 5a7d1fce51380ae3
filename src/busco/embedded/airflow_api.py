"""Airflow's stable REST API, as far as the command and the tests need it."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import requests

from busco.embedded import processes
from busco.errors import BuscoError
from busco.orchestration.access import development_admin
from busco.settings import Settings

_PATIENCE = 60.0


class AirflowApi:
    """The embedded Airflow, as admin. Times in its answers are UTC."""

    def __init__(self, settings: Settings) -> None:
        self._state, self._port = settings.state, processes.known_port(settings.state, "airflow-webserver")
        self.base = f"http://127.0.0.1:{self._port}"
        self.session = requests.Session()
        self.session.trust_env = False  # no proxy on the way to this machine
        self.session.auth = development_admin()

    def health(self) -> dict[str, Any]:
        """Airflow's report on itself, by service.

        Raises:
            OSError: nobody answers (requests' exceptions are such), or somebody else listens there.
        """
        self._check_listener()
        return dict(self.session.get(f"{self.base}/health", timeout=5).json())

    def call(self, method: str, path: str, body: Any = None, **query: Any) -> Any:
        """A call below /api/v1.

        Raises:
            BuscoError: Airflow refuses it, with its reason.
            OSError: as `health`.
        """
        self._check_listener()
        answer = self.session.request(method, f"{self.base}/api/v1/{path}", json=body, params=query, timeout=60)
        if answer.status_code >= 400:
            try:
                said = answer.json()
                reason = said.get("detail") or said.get("title")
            except ValueError:
                reason = answer.text[:200]
            raise BuscoError(f"Airflow: {method} {path}: {answer.status_code} {reason}")
        return answer.json() if "json" in answer.headers.get("content-type", "") else answer.content.decode()

    def _check_listener(self) -> None:
        """The admin's password goes to the webserver that was started here, and to nobody who has taken its port."""
        process = processes.find(self._state, "webserver")
        if process is None or not processes.listens(process, self._port):
            raise ConnectionError(f"Airflow's webserver does not listen on 127.0.0.1:{self._port}; start it: busco ui")

    def trigger(self, dag_id: str, conf: dict[str, Any], run_id: str | None = None) -> str:
        """Starts a run of a DAG, waiting until Airflow knows it; gives the run's id.

        Raises:
            BuscoError: the DAG can't be imported (with the error), or stays unknown; or Airflow refuses the run.
        """
        self.wait_for_dag(dag_id)
        body = {"conf": conf, **({"dag_run_id": run_id} if run_id else {})}
        return str(self.call("POST", f"dags/{dag_id}/dagRuns", body)["dag_run_id"])

    def wait_for_dag(self, dag_id: str, limit: float = _PATIENCE) -> dict[str, Any]:
        """What Airflow knows of a DAG, as soon as it is parsed.

        Raises:
            BuscoError: it can't be imported (with the error), or stays unknown for `limit` seconds.
        """
        begun = time.monotonic()
        while True:
            dag = self._find_dag(dag_id)
            if dag and dag["is_active"] and not dag["has_import_errors"]:
                return dag
            late = time.monotonic() - begun
            errors = self.call("GET", "importErrors")["import_errors"] if late > limit / 2 else []
            own = [error for error in errors if dag and error["filename"] == dag["fileloc"]]
            if errors:
                error = (own or errors)[0]
                raise BuscoError(f"{error['filename']} can't be imported:\n{error['stack_trace'].strip()}")
            if late > limit:
                raise BuscoError(f"Airflow does not know the DAG {dag_id}", "look at the UI: make ui")
            time.sleep(0.5)

    def _find_dag(self, dag_id: str) -> dict[str, Any] | None:
        found = self.call("GET", "dags", dag_id_pattern=dag_id, only_active=False, limit=100)["dags"]
        return next((dict(dag) for dag in found if dag["dag_id"] == dag_id), None)

    def dag_run(self, dag_id: str, run_id: str) -> dict[str, Any]:
        return dict(self.call("GET", f"dags/{dag_id}/dagRuns/{run_id}"))

    def task_instances(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        """All of a run's tasks, however many."""
        found: list[dict[str, Any]] = []
        while True:
            page = self.call("GET", f"dags/{dag_id}/dagRuns/{run_id}/taskInstances", limit=100, offset=len(found))
            found += page["task_instances"]
            if len(found) >= page["total_entries"] or not page["task_instances"]:
                return found

    def clear(
        self, dag_id: str, run_id: str, task_ids: Sequence[str], downstream: bool = False, only_failed: bool = False
    ) -> None:
        """Clears tasks, as the UI's button does."""
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
        """Marks one task."""
        path = f"dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}"
        self.call("PATCH", path, {"dry_run": False, "new_state": state})

    def log(self, dag_id: str, run_id: str, task_id: str, try_number: int) -> str:
        path = f"dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/logs/{try_number}"
        said = self.call("GET", path, full_content="true")
        return said if isinstance(said, str) else json.dumps(said)
