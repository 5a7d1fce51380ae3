"""Parses selections of what to build, in dbt's syntax, and refuses anything that could become a command-line option."""

from __future__ import annotations

import unicodedata

from busco.errors import BuscoError

_HINT = 'separate names of models, tags and paths with spaces: fct_orders+ tag:finance (dbt docs, "Syntax overview")'


def selectors(text: object) -> list[str]:
    """Splits a selection into words, separated by any whitespace; returns an empty list if there are none.

    Raises:
        BuscoError: the selection is not text (for example, a list from YAML or JSON) or contains invisible characters,
            or one of its words begins with a dash and so is, or looks like, an option.
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
        # a word with a dash after quotes or brackets can still be an option in another syntax (JSON, YAML, a shell)
        first = word.lstrip("'\"`[({,")[:1]
        if first == "\u2212" or (first and unicodedata.category(first) == "Pd"):
            raise BuscoError(
                f"the selection contains {shown}, which begins with a dash and so looks like an option", _HINT
            )
    return words
