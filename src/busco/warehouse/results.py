"""Converts the events of a running dbt command into results and logs, which the run's followers read."""

from __future__ import annotations

import re
import threading
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from busco.errors import BuscoError
from busco.lake.budget import explained
from busco.lake.records import Result, Status, utc_now
from busco.lake.runs import Run
from busco.project import Project
from busco.warehouse import dbt_errors
from busco.warehouse.console import message as shown_message
from busco.warehouse.console import node_of
from busco.warehouse.redact import Redactor
from busco.warehouse.session import Session

_STATUS: dict[str, Status] = {
    "success": "success",
    "pass": "success",
    "no-op": "success",
    "partial success": "error",
    "warn": "warn",
    "fail": "failed",
    "error": "error",
    "runtime error": "error",
    "skipped": "skipped",
}
# the line number that DuckDB reports, and the text of that line (long lines are truncated with dots)
_LINE = re.compile(r"\bLINE (\d+): ?(.*)")


class Reporter:
    """A dbt event callback that collects each node's log lines and, when the node finishes, writes its result (R8, R9).

    dbt calls a reporter from its own threads and swallows any exception that the reporter raises. So the exception is
    kept in `problem`, and `check` raises it.
    """

    def __init__(
        self, run: Run, session: Session, project: Project, redactor: Redactor, code_version: str, tested_code: str
    ) -> None:
        self.run, self.session, self.project, self.code_version = run, session, project, code_version
        self.redactor = redactor
        self.statuses: dict[str, Status] = {}
        self.tested_code = tested_code
        self.problem: BaseException | None = None
        self._lines: dict[str, list[str]] = {}
        self._lock = threading.Lock()

    def __call__(self, event: Any) -> None:
        try:
            self._handle(event)
        except BaseException as error:
            self.problem = self.problem or error

    def keep(self, units: Collection[str]) -> None:
        """Reports unit tests as passed, because they have passed with the same code (R7)."""
        text = "kept: it has passed, and no code has changed since"

        def report(node: str) -> None:
            result = Result(
                node=node,
                runner=self.session.runner,
                status="success",
                kept=True,
                message=text,
                finished_at=utc_now(),
                code_version=self.code_version,
                tested=self.tested_code,
            )
            self.run.put_result(result, f"{text}\n")

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(report, units))
        self.statuses |= dict.fromkeys(units, "success")

    def _tested(self, node: str) -> str:
        """Returns the code that a unit test has tested; '' if its rows had the types of tables made by other code."""
        model = self.project.unit_tests.get(node)
        return self.tested_code if model is not None and self.session.is_upstream_current(model) else ""

    def check(self) -> None:
        """Raises the exception that occurred while handling events, if any."""
        if self.problem is not None:
            raise self.problem

    def _handle(self, event: Any) -> None:
        data = event.data
        node = node_of(event)
        if not node:
            return
        name = event.info.name
        if event.info.level in ("info", "warn", "error") and event.info.msg:
            text = shown_message(event, self.redactor)
            with self._lock:
                self._lines.setdefault(node, []).append(f"{event.info.ts.ToJsonString()} {text}")
        if name == "NodeStart":
            self.run.put_result(Result(node=node, runner=self.session.runner, status="running"))
        elif name == "NodeFinished":
            self._finished(node, data.run_result)

    def _finished(self, node: str, result: Any) -> None:
        status = _STATUS.get(str(result.status).lower(), "error")
        message = str(result.message or "")
        if status not in ("success", "skipped"):
            message = self.redactor.text(node, message)
        made = self.session.made.get(node)
        reads: dict[str, str] = made.reads if made else {}
        if made is None and node in self.project.tests and status != "skipped":
            try:
                reads = self.session.reads(node)
            except BuscoError as error:
                # the test read an empty placeholder for a table that doesn't exist, so the test's result is meaningless
                status, message = "error", str(error)
        bad = status in ("failed", "error")
        if bad and (explanation := explained(message, self.session.budget)):
            message = str(explanation)
        elif bad and (advice := dbt_errors.advice(self.session.settings, message)):
            message = f"{message.rstrip()}\n  → {advice}"
        text, where = located(message, self.project, node, self.session.sql.get(node, "")) if bad else ("", "")
        record = Result(
            node=node,
            runner=self.session.runner,
            status=status,
            reads=reads,
            made=made.version.version if made and not bad else None,
            kept=bool(made and made.kept),
            rows=made.version.rows if made else None,
            failures=int(result.num_failures) if node in self.project.tests and result.num_failures else None,
            message=message.strip().splitlines()[0] if message.strip() else "",
            error=text,
            where=where,
            seconds=round(float(result.execution_time), 3),
            finished_at=utc_now(),
            code_version=self.code_version,
            fenced=node in self.session.fenced,
            tested=self._tested(node),
        )
        with self._lock:
            self.statuses[node] = status
            lines = self._lines.pop(node, [])
        if text and not any(text.splitlines()[0] in line for line in lines):
            lines.append(text)
        self.run.put_result(record, "\n".join(lines) + "\n")


def located(message: str, project: Project, node: str, sql: str) -> tuple[str, str]:
    """Replaces DuckDB's line number in dbt's error with the line number in the model's compiled SQL.

    DuckDB counts lines from the start of the whole statement, in which lines from dbt and from this platform precede
    the model's SQL. The line is therefore found by its text.

    Returns:
        The error, and the place to look: `<file>:<line>` if the line was found, otherwise only the file. For a model,
        this is the file with the compiled SQL.
    """
    properties = project.node(node)
    path = str(properties["original_file_path"])
    if node in project.unit_tests:
        # a unit test runs its model's SQL, so point to the model's file
        tested = project.node(project.unit_tests[node])
        path, sql = str(tested["original_file_path"]), str(tested["raw_code"])
    elif properties["resource_type"] == "model":
        path = f"target/compiled/{project.name}/{path}"
    else:
        return message.strip(), path
    found: list[int] = []

    def shift(match: re.Match[str]) -> str:
        number, text = int(match.group(1)), match.group(2)
        shown = text.strip().strip(".").strip()
        lines = [at for at, line in enumerate(sql.splitlines(), 1) if shown and shown in line]
        if not lines:
            return match.group(0)
        found.append(min(lines, key=lambda at: abs(at - number)))
        return f"LINE {found[-1]}: {text}"

    text = _LINE.sub(shift, message.strip())
    return text, f"{path}:{found[0]}" if found else path
