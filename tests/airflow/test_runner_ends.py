"""A task's page shows how its runner ended, from the runner's own records or else from what others observed."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import pytest

from busco.lake.records import RUNNER_NODE, Ending, Order, Result, Runner
from busco.orchestration import pages
from busco.orchestration.launch import LocalLauncher, LocalProcess
from busco.processes import this_host
from busco.settings import Settings
from tests.airflow.lab import Lab, a_model

NODE = "model.p.s"
ARN = "arn:aws:ecs:us-east-1:1:task/busco/1"
NORMAL = "normally, after completing all of its work"
KILLED = "its process was killed (signal 9), either manually or because the machine ran out of memory"
GONE = "its process is gone; it may have been killed or run out of memory, or its machine may have restarted"


@dataclass
class Shown:
    """The facts on a task's page "ECS task"."""

    page: pages.Page

    @property
    def facts(self) -> dict[str, str]:
        return dict(self.page.facts)

    @property
    def end(self) -> tuple[str | None, str | None]:
        """Returns how the runner ended, and what to do about it."""
        names = [name for name, _ in self.page.facts]
        assert names.count("ended") <= 1, "the end is shown at most once"
        return self.facts.get("ended"), self.facts.get("what to do")


def shown(lab: Lab, settings: Settings, state: str = "failed", task: dict[str, Any] | None = None) -> Shown:
    task_try = pages.TaskTry("d", "r", "s", (NODE,), "model silver.s", 1, state)
    ecs = mock.Mock()
    ecs.describe_tasks.return_value = {"tasks": [task] if task else []}
    ecs.list_tasks.return_value = {"taskArns": [ARN] if task else []}
    with (
        mock.patch.object(pages, "_store", return_value=lab.run.store),
        mock.patch.object(pages, "run_key", return_value="r"),
        mock.patch.object(pages, "client", return_value=ecs),
    ):
        page = pages.ecs_page(settings, task_try)
    assert isinstance(page, pages.Page)
    return Shown(page)


def registered(lab: Lab, settings: Settings, is_ecs: bool, process: Any = None) -> Runner:
    """Registers a runner, by default with this living process as its own."""
    pid = process.pid if process else psutil.Process().pid
    started = 0.0 if process else psutil.Process().create_time()
    runner = Runner(
        number=1, kind="shared", launcher="ecs" if is_ecs else "local", host=this_host(settings.state), pid=pid,
        started=started, token="t", arn=ARN if is_ecs else "",
    )  # fmt: skip
    lab.run.store.create(lab.run.layout.runner(1), runner)
    lab.run.put_result(Result(node=RUNNER_NODE, runner=1, status="running", plan=(NODE,)))
    return runner


def a_settings(tmp_path: Path, is_ecs: bool) -> Settings:
    more = {"endpoint_url": "http://127.0.0.1:1", "execution": "ecs_shared" if is_ecs else "local"}
    return Settings(home=tmp_path).model_copy(update=more)


def stopped(code: int | None, reason: str = "", stop_code: str = "EssentialContainerExited") -> dict[str, Any]:
    container = {"name": "dbt", "lastStatus": "STOPPED", "exitCode": code, "reason": reason}
    return {
        "taskArn": ARN, "lastStatus": "STOPPED", "desiredStatus": "STOPPED", "memory": "4096", "stopCode": stop_code,
        "stoppedReason": "Essential container in task exited", "containers": [container],
    }  # fmt: skip


@pytest.mark.parametrize("is_ecs", [False, True])
@pytest.mark.parametrize("is_noted", [False, True])
@pytest.mark.parametrize("code", [0, 1])
def test_a_runner_that_completed_its_work_ended_normally_even_if_its_models_failed(
    tmp_path: Path, is_ecs: bool, is_noted: bool, code: int
) -> None:
    lab, settings = Lab(a_model("s")), a_settings(tmp_path, is_ecs)
    registered(lab, settings, is_ecs, mock.Mock(pid=2**22 + 1))
    lab.run.put_result(Result(node=NODE, runner=1, status="error" if code else "success"))
    lab.run.put_result(Result(node=RUNNER_NODE, runner=1, status="success", plan=(NODE,)))
    if is_noted:
        # as recorded by the triggerer that noticed that it was gone
        seen = Ending(number=1, reason="it was killed, or ran out of memory", hint="give it more")
        lab.run.store.create(lab.run.layout.ending(1), seen)
    task = stopped(code) if is_ecs else None
    assert shown(lab, settings, "failed" if code else "success", task).end == (NORMAL, None)
    if is_ecs:
        assert shown(lab, settings).end == (NORMAL, None), "ECS no longer has the task"


@pytest.mark.parametrize("is_ecs", [False, True])
def test_a_runner_that_could_not_work_is_shown_with_the_error_that_it_reported(tmp_path: Path, is_ecs: bool) -> None:
    lab, settings = Lab(a_model("s")), a_settings(tmp_path, is_ecs)
    registered(lab, settings, is_ecs, mock.Mock(pid=2**22 + 1))
    lab.run.put_result(Result(node=RUNNER_NODE, runner=1, status="error", error="dbt can't parse the project\n  → fix"))
    end, hint = shown(lab, settings, task=stopped(1) if is_ecs else None).end
    assert end == "with an error: dbt can't parse the project\n  → fix"
    assert hint is None


@pytest.mark.parametrize("is_ecs", [False, True])
def test_a_runner_that_is_still_working_has_not_ended(tmp_path: Path, is_ecs: bool) -> None:
    lab, settings = Lab(a_model("s")), a_settings(tmp_path, is_ecs)
    registered(lab, settings, is_ecs)
    task = {"taskArn": ARN, "lastStatus": "RUNNING", "desiredStatus": "RUNNING"} if is_ecs else None
    answer = shown(lab, settings, "deferred", task)
    assert answer.end == (None, None)
    assert answer.page.reloads
    assert ("running" in answer.facts["process"]) if not is_ecs else answer.facts["status"].startswith("RUNNING")


def test_a_local_runner_that_is_gone_without_a_result_is_shown_with_the_recorded_reason(tmp_path: Path) -> None:
    lab, settings = Lab(a_model("s")), a_settings(tmp_path, False)
    registered(lab, settings, False, mock.Mock(pid=2**22 + 1))
    assert shown(lab, settings).end == (GONE, None)
    lab.run.store.create(lab.run.layout.ending(1), Ending(number=1, reason=KILLED))
    assert shown(lab, settings).end == (KILLED, None)


@pytest.mark.parametrize(
    ("task", "words"),
    [
        (stopped(137, "OutOfMemoryError: Container killed due to memory usage"), "ran out of memory (it had 4 GB)"),
        (stopped(137), "the process was killed (signal 9)"),
        (stopped(None, "", "UserInitiated"), "somebody stopped the task"),
        (stopped(2), "exited with code 2"),
    ],
)
def test_an_ecs_task_that_is_gone_without_a_result_is_shown_with_the_reason_from_ecs(
    tmp_path: Path, task: dict[str, Any], words: str
) -> None:
    lab, settings = Lab(a_model("s")), a_settings(tmp_path, True)
    registered(lab, settings, True)
    end, hint = shown(lab, settings, task=task).end
    assert words in str(end)
    assert hint


@pytest.mark.parametrize("state", ["deferred", "failed"])
@pytest.mark.parametrize("is_ecs", [False, True])
def test_the_page_of_a_runner_that_never_registered_says_so(tmp_path: Path, is_ecs: bool, state: str) -> None:
    lab, settings = Lab(a_model("s")), a_settings(tmp_path, is_ecs)
    order = Order(name="shared", generation=1, kind="shared", token="t")
    lab.run.store.create(lab.run.layout.order("shared", 1), order)
    if is_ecs:
        found = shown(lab, settings, state, stopped(None, "CannotPullContainerError: not found", "TaskFailedToStart"))
        assert "not registered yet" in found.facts["runner"]
        assert "the image does not exist" in str(found.end[0])
    text = " ".join(shown(lab, settings, state).page.texts)
    assert ("was requested" if state == "deferred" else "had no runner") in text


@contextmanager
def a_child(tmp_path: Path, code: str) -> Iterator[tuple[LocalLauncher, Runner, subprocess.Popen[bytes]]]:
    """Yields a launcher, a runner that it started, and the runner's process."""
    settings = a_settings(tmp_path, False)
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    try:
        started = psutil.Process(process.pid).create_time()
        host = this_host(settings.state)
        runner = Runner(
            number=1, kind="shared", launcher="local", host=host, pid=process.pid, started=started, token="t"
        )  # fmt: skip
        yield LocalLauncher(settings, [LocalProcess(process, tmp_path / "log")]), runner, process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("code", "sent", "words"),
    [
        ("pass", 0, "its process exited on its own with exit code 0"),
        ("raise SystemExit(3)", 0, "its process exited on its own with exit code 3"),
        ("input()", signal.SIGKILL, KILLED),
        ("input()", signal.SIGTERM, "its process was terminated by signal 15"),
    ],
)
def test_a_launcher_records_how_its_own_process_ended(tmp_path: Path, code: str, sent: int, words: str) -> None:
    with a_child(tmp_path, code) as (launcher, runner, process):
        if sent:
            assert asyncio.run(launcher.look([runner], [])) == {}
            process.send_signal(sent)
        process.wait(20)
        assert asyncio.run(launcher.look([runner], []))[1].reason == words
        # another triggerer, or this one after a restart, did not see it end
        assert asyncio.run(LocalLauncher(launcher.settings).look([runner], []))[1].reason == GONE


@pytest.mark.parametrize("is_registered", [False, True])
def test_a_local_runner_that_its_launcher_stopped_is_recorded_as_stopped(tmp_path: Path, is_registered: bool) -> None:
    with a_child(tmp_path, "input()") as (launcher, runner, _):
        asyncio.run(launcher.stop(runner, "cleared") if is_registered else launcher.children[0].stop("cleared"))
        assert asyncio.run(launcher.look([runner], []))[1].reason == "its process was stopped: cleared"
