"""Parses selections of what to build, in dbt's syntax, and refuses anything that could become a command-line option."""

from __future__ import annotations

import unicodedata

from busco.errors import BuscoError

_HINT = 'separate names of models, tags and paths with spaces: fct_orders+ tag:finance (dbt docs, "Syntax overview")'


def selectors(text: object) -> list[str]:
    """Splits a selection into its words; returns an empty list for an empty one.

    Words are separated by any whitespace.

    Raises:
        BuscoError: the selection is not text (for example, a list from YAML or JSON) or contains invisible characters,
            or a word begins with a dash, so that it would be read as an option or looks like one.
    """
    if text is None:
        return []
    if not isinstance(text, str):
        raise BuscoError(f"a selection must be text, not {type(text).__name__}: {str(text)[:80]!r}", _HINT)
    words = text.split()
    for word in words:
        shown = repr(word[:80])
        if not word.isprintable():
            raise BuscoError(f"the selection contains invisible characters in {shown}", _HINT)
        # after quotes or brackets, it can still be an option in another syntax (JSON, YAML, a shell)
        first = word.lstrip("'\"`[({,")[:1]
        if first == "\u2212" or (first and unicodedata.category(first) == "Pd"):
            raise BuscoError(f"the selection contains {shown}, which begins with a dash like an option", _HINT)
    return words
