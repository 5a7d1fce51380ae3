"""Starts the whole platform, and runs the demo: the main workflow from end to end."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from rich.live import Live
from rich.markup import escape
from rich.table import Table

from busco.aws import client
from busco.embedded import airflow
from busco.embedded.airflow_api import AirflowApi
from busco.environments import python, without_airflow
from busco.errors import BuscoError
from busco.events import pending
from busco.lake.layout import EnvironmentLayout
from busco.lake.objects import ObjectStore
from busco.orchestration.access import KNOWN_PASSWORDS, development_admin
from busco.output import console
from busco.project import Project
from busco.settings import Settings, get_settings
from busco.text import printable

Say = Callable[[str], None]
DAG = "lakehouse"
_DONE = frozenset({"success", "failed"})
_LIMIT = 3600.0
_GRAPH_LIMIT = 90.0
_RUN_LIMIT = 60.0
_MARKS = {
    "success": "[green]✓ success[/]",
    "failed": "[red]✗ failed[/]",
    "upstream_failed": "[yellow]· upstream failed[/]",
    "skipped": "[dim]- skipped[/]",
    "deferred": "[cyan]… following[/]",
    "running": "[cyan]… running[/]",
}
QUESTION = (
    "select month_start, sum(orders) as orders, sum(order_amount) as order_amount "
    "from busco_gold.mart_daily_sales join busco_gold.dim_dates on date_day = purchased_on "
    "group by month_start order by month_start desc limit 5"
)


def start_platform(settings: Settings, say: Say, lake: str | None) -> str:
    """Starts the local AWS and Airflow if they aren't running; returns Airflow's URL.

    Raises:
        BuscoError: one of them doesn't start.
    """
    command(settings, "aws", "up", *(["--lake", lake] if lake else []), quiet=True)
    get_settings.cache_clear()
    if not settings.manifest_path.is_file():
        command(settings, "dbt", "parse")
    return airflow.up(get_settings(), say)


def run_demo(settings: Settings, data: str | None, orders: int, say: Say) -> int:
    """Runs the main workflow (upload files, which start a run of the DAG; query Athena) and returns the exit status.

    Each data set, generated or from a folder, gets a local lake of its own, so that data sets never mix.
    """
    folder = Path(data).resolve() if data else None
    if folder is not None and not folder.is_dir():
        raise BuscoError(f"{data} is not a folder", "run: make demo DATA=<folder of CSV files>")
    clock = Clock(say)
    lake = lake_name(folder, orders)
    command(settings, "aws", "up", "--lake", lake, quiet=True)
    get_settings.cache_clear()
    settings = get_settings()
    clock.step("local AWS")
    # Airflow takes the longest to start
    starting = InBackground(lambda: airflow.up(settings, lambda _: None))
    command(settings, "dbt", "parse")
    if folder is None:
        folder = settings.state / "sample" / str(orders)
        if not (folder / "complete").exists():
            say(f"generating sample data: a marketplace with {orders:,} orders")
            command(settings, "sample", "--orders", str(orders), "--out", str(folder), quiet=True)
            (folder / "complete").touch()
            clock.step("sample data")
    url = starting.result()
    clock.step("Airflow (remaining startup)")
    api = AirflowApi(settings)
    api.log_in()
    wait_for_graph(settings, api)
    before = {run["dag_run_id"] for run in api.dag_runs(DAG)}
    if settings.listen:
        command(settings, "put", str(folder), "--until", "ingested", to_stdout=True)
        clock.step("upload and ingest")
    else:
        command(settings, "ingest", str(folder), to_stdout=True)
        clock.step("ingest")
    run_id = started_run(settings, api, before) if settings.listen else None
    if run_id is None:
        run_id = api.trigger(DAG, {})
        say("no upload has started a run, so the demo has")
    while True:
        say(f"DAG {DAG}, run {run_id}: {url}/dags/{DAG}/grid")
        state = follow(api, run_id)
        clock.step("DAG run")
        # files that arrived during the run have started the next one
        before.add(run_id)
        following = started_run(settings, api, before) if settings.listen and state == "success" else None
        if following is None:
            break
        run_id = following
    if state != "success":
        say_failures(api, run_id, say)
        return 1
    command(settings, "release", "show", to_stdout=True)
    console().print("\n[bold]Athena[/]: sales by month, latest first:")
    command(settings, "query", QUESTION, to_stdout=True)
    clock.step("query")
    clock.total()
    say(f"the tables and their columns: {url}/catalog/   ({shown_login()})")
    say("explore: make ui   |   stop everything: make down")
    return 0


def shown_login() -> str:
    """Returns the admin's name and password to be printed; a password that only the user knows is not printed."""
    name, password = development_admin()
    return f"{name} / {password if password in KNOWN_PASSWORDS else 'see AIRFLOW_ADMIN_PASSWORD'}"


def started_run(settings: Settings, api: Any, before: Collection[str]) -> str | None:
    """Returns the run that new deliveries have started, as soon as there is one.

    Returns None if everything is published, or if no run has started after a minute, because an earlier run failed with
    the same deliveries.

    Args:
        before: the ids of earlier runs.
    """
    store, environment = ObjectStore(client("s3", settings), settings.lake_bucket), EnvironmentLayout("prod")
    project = Project.of(settings)
    deadline = time.monotonic() + _RUN_LIMIT
    while True:
        new = [run["dag_run_id"] for run in api.dag_runs(DAG) if run["dag_run_id"] not in before]
        if new:
            return str(new[0])
        published = pending.published(store, environment, project.identity)
        if not pending.unpublished(pending.current_sets(store, project.contracts), published):
            return None
        if time.monotonic() > deadline:
            return None
        time.sleep(0.5)


def lake_name(folder: Path | None, orders: int) -> str:
    """Returns a data set's lake name: `sample`, `sample-5000`, or, for a folder, its name and a hash of its path."""
    if folder is None:
        return "sample" if orders == 100_000 else f"sample-{orders}"
    stem = re.sub(r"[^a-z0-9]+", "-", folder.name.lower()).strip("-")[:30]
    return f"{stem or 'data'}-{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}"


def start_lakehouse(settings: Settings) -> str | None:
    """Starts a run of the `lakehouse` DAG and returns its id; None if the embedded Airflow isn't running."""
    if not any(name == "webserver" and state.startswith("running") for name, state in airflow.status(settings)):
        return None
    api = AirflowApi(settings)
    wait_for_graph(settings, api)
    return str(api.trigger(DAG, {}))


def wait_for_graph(settings: Settings, api: Any) -> None:
    """Waits until Airflow has loaded the project's latest graph.

    If a run started earlier, tasks would appear and disappear midway, and Airflow would fail the run.

    Raises:
        BuscoError: Airflow doesn't load the graph in time.
    """
    mark = Project.read(settings.manifest_path).graph_mark
    deadline = time.monotonic() + _GRAPH_LIMIT
    api.wait_for_dag(DAG)
    while mark not in (api.call("GET", f"dags/{DAG}/details")["doc_md"] or ""):
        if time.monotonic() > deadline:
            raise BuscoError(
                f"Airflow has not loaded the project's graph after {_GRAPH_LIMIT:.0f} s",
                f"look for an import error in dags/{DAG}.py in the UI: make ui",
            )
        time.sleep(0.25)


def follow(api: Any, run_id: str) -> str:
    """Waits for a run to end, showing its tasks live on a terminal; prints their final states and returns the run's."""
    deadline = time.monotonic() + _LIMIT
    terminal = sys.stdout.isatty()
    with Live(console=console(), refresh_per_second=4, transient=True) if terminal else _Nothing() as live:
        while True:
            state = str(api.dag_run(DAG, run_id)["state"])
            if terminal:
                live.update(state_table(api.task_instances(DAG, run_id)))
            if state in _DONE:
                break
            if time.monotonic() > deadline:
                raise BuscoError(f"the run {run_id} has not ended after {_LIMIT:.0f} s", "check it in the UI: make ui")
            time.sleep(1)
    console().print(state_table(api.task_instances(DAG, run_id)))
    return state


def state_table(tasks: Sequence[dict[str, Any]]) -> Table:
    """Builds the table of a run's tasks: name, state and duration in seconds."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in ("task", "state", "seconds"):
        table.add_column(header, justify="right" if header == "seconds" else "left")
    for task in sorted(tasks, key=lambda t: (t.get("start_date") or "9", t["task_id"])):
        state = str(task.get("state") or "waiting")
        seconds = task.get("duration")
        name = str(task["task_id"]).removeprefix("models.")
        table.add_row(
            escape(printable(name)), _MARKS.get(state, f"[dim]{state}[/]"), f"{seconds:.1f}" if seconds else ""
        )
    return table


def say_failures(api: Any, run_id: str, say: Say) -> None:
    """Reports the error lines from each failed task's log."""
    for task in api.task_instances(DAG, run_id):
        if task.get("state") == "failed":
            log = str(api.log(DAG, run_id, task["task_id"], task["try_number"]))
            shown = [line for line in log.splitlines() if "ERROR" in line or "→" in line or "Error" in line][:12]
            say(f"\n{task['task_id']} failed:\n" + "\n".join(shown or log.splitlines()[-15:]))
    say("\nfix the error, then clear the failed task in the UI: make ui")


def command(settings: Settings, *arguments: str, to_stdout: bool = False, quiet: bool = False) -> None:
    """Runs `busco <arguments>` in dbt's environment.

    The command's standard output goes to standard error by default, to standard output with `to_stdout`, or nowhere
    with `quiet`. Progress messages always go to standard error.

    Raises:
        BuscoError: the command failed; it has already printed the reason.
    """
    environment = without_airflow(dict(os.environ))
    result = subprocess.run(
        [str(python(settings, "dbt")), "-m", "busco", *arguments],
        cwd=settings.home,
        env=environment,
        check=False,
        stdout=subprocess.DEVNULL if quiet else None if to_stdout else sys.stderr,
    )
    if result.returncode != 0:
        raise BuscoError(f"busco {arguments[0]} failed (exit status {result.returncode}); see above")


class Clock:
    """Reports the duration of each step when the step ends."""

    def __init__(self, say: Say) -> None:
        self.say, self.began = say, time.monotonic()
        self.last = self.began

    def step(self, name: str) -> None:
        now = time.monotonic()
        self.say(f"[{now - self.began:6.1f} s] {name}: {now - self.last:.1f} s")
        self.last = now

    def total(self) -> None:
        self.say(f"the whole demo: {time.monotonic() - self.began:.1f} s")


class InBackground:
    """Runs a call in its own thread; `result` waits for the call, then returns its value or raises its exception."""

    def __init__(self, call: Callable[[], str]) -> None:
        self._value = ""
        self._error: BaseException | None = None
        self._call = call
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._value = self._call()
        except BaseException as error:
            self._error = error

    def result(self) -> str:
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._value


class _Nothing:
    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        return None
