r"""Escapes text from other sources before it is displayed: names, values, errors, and reasons that users entered.

A terminal interprets control characters as commands (move the cursor, clear the screen, change the title, send input as
if typed), and some invisible characters change the order in which text is displayed (Unicode Standard Annex 9, section
2; Boucher and Anderson, "Trojan Source", 2021). Both are displayed as escapes, such as `\x1b`.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
import unicodedata
from typing import Any

# Unicode's categories of invisible characters: controls (C0 and C1), formats (bidi, zero width, tags), halves of
# surrogate pairs, and line and paragraph separators.
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def count(number: int, one: str, many: str = "") -> str:
    """Returns a number with its noun: `1 node`, `2,000 nodes`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def printable(text: str) -> str:
    """Returns text as one line, in which line ends, control characters and characters that reorder text are escaped."""
    return text if text.isprintable() else "".join(map(_escaped, text))


def shown(text: str) -> str:
    """Returns text of one or more lines, escaped as by `printable` except for line ends (LF) and tabs."""
    return text if text.isprintable() else "".join(char if char in "\n\t" else _escaped(char) for char in text)


def json_text(value: Any, indent: int | None = None) -> str:
    """Returns a value as JSON.

    Letters of all languages are kept, and the characters that `printable` escapes are written with JSON's own escapes,
    so that a parser gets the exact value.

    Raises:
        ValueError: the value contains NaN or infinity.
    """
    made = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
    if made.isprintable():
        return made
    return "".join(json.dumps(char)[1:-1] if char != "\n" and _is_invisible(char) else char for char in made)


def guard() -> None:
    """Escapes Python's own output, too: tracebacks, and log lines from the root logger's handlers and the last-resort
    handler."""
    sys.excepthook = lambda kind, error, trace: print(
        shown("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr
    )
    for handler in (logging.lastResort, *logging.getLogger().handlers):
        if handler is not None and not isinstance(handler.formatter, ShownFormatter):
            handler.setFormatter(ShownFormatter(handler.formatter))


class ShownFormatter(logging.Formatter):
    """Formats log lines without control characters, for a terminal and for files that are viewed in one.

    Args:
        inner: formats the line before it is escaped; by default, the line is only the message.
    """

    def __init__(self, inner: logging.Formatter | None = None) -> None:
        super().__init__()
        self.inner = inner or logging.Formatter()

    def format(self, record: logging.LogRecord) -> str:
        return shown(self.inner.format(record))


def _escaped(char: str) -> str:
    return repr(char)[1:-1] if _is_invisible(char) else char


def _is_invisible(char: str) -> bool:
    return not char.isprintable() and unicodedata.category(char) in _INVISIBLE
