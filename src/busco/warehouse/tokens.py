"""Splits SQL into tokens with DuckDB's own lexer, and finds the names in it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import duckdb

_KINDS = {kind.value: name for name, kind in duckdb.token_type.__members__.items()}
_STRING = re.compile(r"'((?:[^']|'')*)'|\$(\w*)\$(.*)\$\2\$", re.DOTALL)
_QUOTED = re.compile(r'"((?:[^"]|"")*)"')
_PLAIN = re.compile(r"[^\s/*-]+")


@dataclass(frozen=True)
class Token:
    kind: str
    text: str
    line: int

    @cached_property
    def name(self) -> str:
        """The name that a keyword, an identifier or a string stands for, in lower case, without quotes."""
        if self.kind == "string_const":
            found = _STRING.match(self.text)
            return (found.group(1) or found.group(3) or "").replace("''", "'").lower() if found else ""
        if self.text.startswith('"'):
            found = _QUOTED.match(self.text)
            return found.group(1).replace('""', '"').lower() if found else self.text.lower()
        found = _PLAIN.match(self.text)
        return found.group().lower() if found else ""


def word(token: Token) -> str:
    """Returns a keyword or name in lower case, or the first character of an operator; '' for a constant."""
    if token.kind == "operator":
        return token.text[:1]
    return token.name if token.kind in ("keyword", "identifier") else ""


def tokens(text: str) -> Iterator[Token]:
    """Yields DuckDB's tokens. Each one extends to the start of the next, so it can end with spaces or comments."""
    content = text.encode()
    found = duckdb.tokenize(text)
    ends = [*(start for start, _ in found), len(content)][1:]
    line, counted = 1, 0
    for (start, kind), end in zip(found, ends, strict=False):
        line += content.count(b"\n", counted, start)
        counted = start
        yield Token(_KINDS[kind.value], content[start:end].decode(), line)


def split(tokens: list[Token]) -> Iterator[list[Token]]:
    """Yields the tokens of each statement; a statement can be empty."""
    statement: list[Token] = []
    for token in tokens:
        if token.kind == "operator" and token.text.startswith(";"):
            yield statement
            statement = []
        else:
            statement.append(token)
    yield statement


def names(statement: Sequence[Token]) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yields each name in a statement: the index of its first token, and its dotted parts in lower case, such as
    `("silver", "a")` for `silver."A"`. Keywords and strings count as names too, because DuckDB accepts them as table
    names."""
    index = 0
    while index < len(statement):
        start, parts = index, [statement[index].name] if _is_name(statement[index]) else []
        while parts and index + 2 < len(statement) and is_dot(statement[index + 1]) and _is_name(statement[index + 2]):
            index += 2
            parts.append(statement[index].name)
        if parts:
            yield start, tuple(parts)
        index += 1


def is_dot(token: Token) -> bool:
    """Whether a token is the dot between the parts of a name."""
    return token.kind == "operator" and token.text.startswith(".")


def _is_name(token: Token) -> bool:
    return token.kind in ("identifier", "keyword", "string_const")
