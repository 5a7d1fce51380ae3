"""Refuses SQL that the local Athena doesn't run, with error messages written for people who query tables.

The rules for queries are the same as for the SQL of models (`busco.warehouse.guard`). Without them, DuckDB would use
this process's permissions and network access to read any file or address that a query names.
"""

from __future__ import annotations

from collections.abc import Sequence

from busco.errors import BuscoError
from busco.warehouse.guard import QUERIES, Guard

AVAILABLE = "queries (SELECT, WITH, VALUES), EXPLAIN of a query, DESCRIBE, SHOW DATABASES, SHOW TABLES and SHOW COLUMNS"

_INSTEAD = {
    "CREATE TABLE AS": "only releases create tables; run the query itself (awswrangler: ctas_approach=False)",
    "UNLOAD": "results go to the workgroup's location only; run the query itself (awswrangler: unload_approach=False)",
}
# First words that are followed by the kind of object; error messages name both words.
_OF_OBJECTS = frozenset({"create", "drop", "alter", "show"})

Token = tuple[str, str, int, int]
"""A token of `ministack.services.athena._sql_tokens`: its kind, text, start and end."""


def refusal(reason: str) -> ValueError:
    """Returns the error for a statement that is rejected; the message lists what is available instead."""
    return ValueError(f"this SQL was rejected before it ran: {reason}. Available: {AVAILABLE}")


def first_word(tokens: Sequence[Token]) -> str:
    """Returns a statement's first word in lower case, after any opening parentheses; '' if no word comes first."""
    kind, text = next(((kind, text) for kind, text, _, _ in tokens if text != "("), ("", ""))
    return text if kind == "name" else ""


def check_statement(tokens: Sequence[Token]) -> None:
    """Checks that the SQL is a single statement of a kind that is available.

    Raises:
        ValueError: the SQL is anything else; the message states the reason and lists what is available.
    """
    last = len(tokens) - 1
    if any(text == ";" and kind == "punct" and number < last for number, (kind, text, _, _) in enumerate(tokens)):
        raise refusal("only one statement can run at a time")
    first = first_word(tokens)
    if first in ("show", "desc", "explain") or first in QUERIES:
        return
    words = [text for kind, text, _, _ in tokens if kind == "name"]
    name = " ".join(words[: 2 if first in _OF_OBJECTS else 1]).upper() or "this"
    if name == "CREATE TABLE" and "as" in words and "select" in words:
        name = "CREATE TABLE AS"
    raise refusal(f"{name} is not available here" + (f": {_INSTEAD[name]}" if name in _INSTEAD else ""))


def explained(query: str, tokens: Sequence[Token]) -> str:
    """Returns the query that an EXPLAIN statement explains; '' for any other statement.

    Raises:
        ValueError: EXPLAIN has options, or no query follows it.
    """
    if first_word(tokens) != "explain":
        return ""
    inner = tokens[1:]
    if inner and inner[0][1] == "analyze":
        raise refusal("EXPLAIN ANALYZE is not available here, because it runs the query that it explains")
    if len(inner) > 1 and inner[0][1] == "(" and inner[1][1] in ("format", "type", "analyze"):
        raise refusal("EXPLAIN with options is not available here")
    if first_word(inner) not in QUERIES - {"describe", "summarize"}:
        raise refusal("EXPLAIN must be followed by a query")
    return query[inner[0][2] :]


def check_query(guard: Guard, query: str, tokens: Sequence[Token]) -> None:
    """Refuses a query that uses anything that Athena doesn't support: table functions, file paths, several statements.

    Raises:
        ValueError: the query is refused; the message states the reason.
    """
    check_statement(tokens)
    try:
        guard.check_question(query)
    except BuscoError as error:
        raise ValueError(error.message) from error
    previous = ""
    for kind, text, _, _ in tokens:
        if kind == "str" and (previous in ("from", "join") or (previous == "," and "://" in text)):
            raise ValueError(f"a string is not a table: {text}")
        previous = text.lower()
