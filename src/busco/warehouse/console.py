"""What dbt says while it works, as people see it: its lines in its format, each through the filter of values.

dbt's own logger prints a message as it is, hence it is silent here (`--log-level none`) and this callback prints.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from dbt_common.events.functions import env_scrubber

from busco import output
from busco.warehouse.redact import Redactor

# Of names, counts and states only; everything else that dbt warns of or calls an error about a node has a text in it.
_PLAIN = frozenset(
    {"LogStartLine", "LogModelResult", "LogTestResult", "LogSeedResult", "LogNodeNoOpResult", "LogFreshnessResult"}
    | {"LogHookStartLine", "LogHookEndLine", "LogCancelLine", "SkippingDetails", "LogSkipBecauseError", "NodeStart"}
    | {"RunResultFailure", "RunResultWarning", "RunResultErrorNoMessage", "SQLCompiledPath", "CheckNodeTestFailure"}
)
# Texts that come from exceptions, whether or not dbt names a node.
_ERRORS = frozenset(
    {"MainEncounteredError", "MainStackTrace", "RunResultError", "RunResultWarningMessage", "GenericExceptionOnRun"}
    | {"AdapterEventInfo", "AdapterEventWarning", "AdapterEventError", "LogNodeResult"}
)
# What the project itself has printed, by `log()` and `print()`.
_FREE = frozenset({"JinjaLogInfo", "JinjaLogWarning", "PrintEvent"})
# What dbt shows because it was asked to; no time before it.
_ANSWERS = frozenset({"PrintEvent", "ShowNode", "CompiledNode"})

Shown = Literal["all", "errors", "nothing"]


def node_of(event: Any) -> str:
    """The unique id of the node that an event is about; '' for none."""
    return str(getattr(getattr(event.data, "node_info", None), "unique_id", "") or "")


def message(event: Any, redactor: Redactor | None, asked: bool = False) -> str:
    """An event's message without values that are to be hidden.

    Args:
        redactor: None where no project was parsed: no model runs then.
        asked: whether the command is one that prints what it was asked for (ls, show, …).
    """
    text, name, node = str(event.info.msg or ""), str(event.info.name), node_of(event)
    if redactor is None or name in _PLAIN or (asked and name in _ANSWERS):
        return text
    if name in _FREE:
        return redactor.free(node, text)
    if name in _ERRORS or (node and event.info.level in ("warn", "error")):
        return redactor.text(node, text)
    return text


class Console:
    """dbt's event callback that prints, at once, what its own console logger would.

    What goes wrong (a reader that is gone, a full disk) is kept for `check`: dbt's threads are no place to end.
    """

    def __init__(self, command: str, redactor: Redactor | None, shown: Shown) -> None:
        self.redactor, self.shown = redactor, shown
        self.asked = command not in ("build", "test")
        self.problem: OSError | None = None
        self._lock = threading.Lock()

    def __call__(self, event: Any) -> None:
        info = event.info
        answer = info.name in _ANSWERS
        if self.problem is not None or self.shown == "nothing" or info.level not in ("info", "warn", "error"):
            return
        if self.shown == "errors" and info.level != "error" and not answer:
            return
        text = env_scrubber(message(event, self.redactor, self.asked))
        line = text if answer else f"{datetime.now(UTC):%H:%M:%S}  {text}"
        try:
            with self._lock:
                # what a program asked for is data; a build's log is read in a terminal, wherever it is written
                (output.exact if answer and self.asked else output.echo)(line)
        except OSError as error:
            self.problem = error

    def check(self) -> None:
        """Raises what went wrong while it printed."""
        if self.problem is not None:
            raise self.problem


def shown_by(arguments: Sequence[str]) -> Shown:
    """How much the user wants to see of a command, by dbt's own options among its arguments."""
    if {"-q", "--quiet"} & {*arguments}:
        return "errors"
    for place, word in enumerate(arguments):
        level = word.partition("=")[2] if word.startswith("--log-level=") else ""
        if word == "--log-level" and place + 1 < len(arguments):
            level = arguments[place + 1]
        if level in ("error", "none"):
            return "errors" if level == "error" else "nothing"
    return "all"
