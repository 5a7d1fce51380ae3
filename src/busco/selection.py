"""What somebody asks to be built, in dbt's selection syntax: values, which never become options of a command."""

from __future__ import annotations

import unicodedata

from busco.errors import BuscoError

_HINT = 'write names of models, tags and paths with spaces between them: fct_orders+ tag:finance (dbt, "Syntax")'


def selectors(text: object) -> list[str]:
    """The words of a selection; none for an empty one.

    Any space separates words, as do tabs and newlines.

    Raises:
        BuscoError: it is no text (a list from YAML or JSON), has characters that cannot be seen, or a word begins with
            a dash: it would be read as an option, or looks like one.
    """
    if text is None:
        return []
    if not isinstance(text, str):
        raise BuscoError(f"a selection is a text, and this is a {type(text).__name__}: {str(text)[:80]!r}", _HINT)
    words = text.split()
    for word in words:
        shown = repr(word[:80])
        if not word.isprintable():
            raise BuscoError(f"the selection has characters that cannot be seen, in {shown}", _HINT)
        # an option behind quotes or brackets is one in other people's syntax (JSON, YAML, a shell)
        first = word.lstrip("'\"`[({,")[:1]
        if first == "\u2212" or (first and unicodedata.category(first) == "Pd"):
            raise BuscoError(f"the selection has {shown}, which begins with a dash as options do", _HINT)
    return words
