r"""How text is shown that was written elsewhere: names, values, errors, what somebody gave as his reason.

A terminal takes control characters for orders (move the cursor, clear the screen, change the title, answer as if
typed), and some invisible ones change the order in which text is read (Unicode Standard Annex 9, section 2; Boucher and
Anderson, "Trojan Source", 2021). They are shown as escapes, `\x1b`.
"""

from __future__ import annotations

import json
import logging
import sys
import traceback
import unicodedata
from typing import Any

# Unicode's categories of what is no text to look at: controls (C0 and C1), formats (bidi, zero width, tags), halves of
# surrogate pairs, separators of lines and paragraphs.
_NO_TEXT = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def printable(text: str) -> str:
    """A text in one line: line ends, control characters, and what changes the order of others, as escapes."""
    return text if text.isprintable() else "".join(map(_escaped, text))


def shown(text: str) -> str:
    """A text of one or more lines, escaped as `printable` does but for line ends (LF) and tabs."""
    return text if text.isprintable() else "".join(char if char in "\n\t" else _escaped(char) for char in text)


def json_text(value: Any, indent: int | None = None) -> str:
    """A value as JSON: letters of all languages as they are, and what `printable` escapes by JSON's own escapes, so
    that whoever reads it gets exactly the value.

    Raises:
        ValueError: NaN or infinity.
    """
    made = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
    if made.isprintable():
        return made
    return "".join(json.dumps(char)[1:-1] if char != "\n" and _is_no_text(char) else char for char in made)


def guard() -> None:
    """Makes what Python itself prints readable too: tracebacks, and logs of those who set up nothing, or all in one."""
    sys.excepthook = lambda kind, error, trace: print(
        shown("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr
    )
    for handler in (logging.lastResort, *logging.getLogger().handlers):
        if handler is not None and not isinstance(handler.formatter, ShownFormatter):
            handler.setFormatter(ShownFormatter(handler.formatter))


class ShownFormatter(logging.Formatter):
    """Log lines without control characters, for a terminal and for files that are looked at in one.

    Args:
        inner: makes the line; the message alone without it.
    """

    def __init__(self, inner: logging.Formatter | None = None) -> None:
        super().__init__()
        self.inner = inner or logging.Formatter()

    def format(self, record: logging.LogRecord) -> str:
        return shown(self.inner.format(record))


def _escaped(char: str) -> str:
    return repr(char)[1:-1] if _is_no_text(char) else char


def _is_no_text(char: str) -> bool:
    return not char.isprintable() and unicodedata.category(char) in _NO_TEXT
