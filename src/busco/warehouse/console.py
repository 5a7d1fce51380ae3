"""Prints dbt's console output: the same lines in the same format, with personal values hidden.

dbt's own logger would print messages unfiltered, so it is silenced (`--log-level none`), and `Console` prints them.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from dbt_common.events.functions import env_scrubber

from busco import output
from busco.warehouse.redact import Redactor

# Events that contain only names, counts and states. Every other warning or error about a node contains free text.
_PLAIN = frozenset(
    {"LogStartLine", "LogModelResult", "LogTestResult", "LogSeedResult", "LogNodeNoOpResult", "LogFreshnessResult"}
    | {"LogHookStartLine", "LogHookEndLine", "LogCancelLine", "SkippingDetails", "LogSkipBecauseError", "NodeStart"}
    | {"RunResultFailure", "RunResultWarning", "RunResultErrorNoMessage", "SQLCompiledPath", "CheckNodeTestFailure"}
)
# Events whose text comes from an exception, whether or not they name a node.
_ERRORS = frozenset(
    {"MainEncounteredError", "MainStackTrace", "RunResultError", "RunResultWarningMessage", "GenericExceptionOnRun"}
    | {"AdapterEventInfo", "AdapterEventWarning", "AdapterEventError", "LogNodeResult"}
)
# Output of the project's own `log()` and `print()` calls.
_FREE = frozenset({"JinjaLogInfo", "JinjaLogWarning", "PrintEvent"})
# Output that the user requested; it is printed without a timestamp.
_RESULTS = frozenset({"PrintEvent", "ShowNode", "CompiledNode"})

Shown = Literal["all", "errors", "nothing"]


def node_of(event: Any) -> str:
    """Returns the unique id of the node that an event is about; '' for none."""
    return str(getattr(getattr(event.data, "node_info", None), "unique_id", "") or "")


def message(event: Any, redactor: Redactor | None, prints_result: bool = False) -> str:
    """Returns an event's message with personal values hidden.

    Args:
        redactor: None if no project was parsed, in which case no model runs.
        prints_result: whether the command's purpose is to print something (ls, show, …).
    """
    text, name, node = str(event.info.msg or ""), str(event.info.name), node_of(event)
    if redactor is None or name in _PLAIN or (prints_result and name in _RESULTS):
        return text
    if name in _FREE:
        return redactor.free(node, text)
    if name in _ERRORS or (node and event.info.level in ("warn", "error")):
        return redactor.text(node, text)
    return text


class Console:
    """A dbt event callback that prints, unbuffered, what dbt's own console logger would print.

    An output error (a closed pipe, a full disk) is kept for `check`, because dbt's threads can't end the command.
    """

    def __init__(self, command: str, redactor: Redactor | None, shown: Shown) -> None:
        self.redactor, self.shown = redactor, shown
        self.prints_result = command not in ("build", "test")
        self.problem: OSError | None = None
        self._lock = threading.Lock()

    def __call__(self, event: Any) -> None:
        info = event.info
        is_result = info.name in _RESULTS
        if self.problem is not None or self.shown == "nothing" or info.level not in ("info", "warn", "error"):
            return
        if self.shown == "errors" and info.level != "error" and not is_result:
            return
        text = env_scrubber(message(event, self.redactor, self.prints_result))
        line = text if is_result else f"{datetime.now(UTC):%H:%M:%S}  {text}"
        try:
            with self._lock:
                # a requested result is data for programs; a build's log is for terminals, even if it goes to a file
                (output.exact if is_result and self.prints_result else output.echo)(line)
        except OSError as error:
            self.problem = error

    def check(self) -> None:
        """Raises the error that occurred while printing, if any."""
        if self.problem is not None:
            raise self.problem


def shown_by(arguments: Sequence[str]) -> Shown:
    """Returns how much of a command's output to show, according to dbt's own options among its arguments."""
    if {"-q", "--quiet"} & {*arguments}:
        return "errors"
    for at, argument in enumerate(arguments):
        level = argument.partition("=")[2] if argument.startswith("--log-level=") else ""
        if argument == "--log-level" and at + 1 < len(arguments):
            level = arguments[at + 1]
        if level in ("error", "none"):
            return "errors" if level == "error" else "nothing"
    return "all"
