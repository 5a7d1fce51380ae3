"""SQL as the tokens of DuckDB's own lexer, and the names that stand in it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import duckdb


@dataclass(frozen=True)
class Token:
    kind: str
    text: str
    line: int

    @property
    def name(self) -> str:
        """What a keyword, an identifier or a string names, in lower case, without quotes."""
        if self.kind == "string_const":
            found = re.match(r"'((?:[^']|'')*)'|\$(\w*)\$(.*)\$\2\$", self.text, re.DOTALL)
            return (found.group(1) or found.group(3) or "").replace("''", "'").lower() if found else ""
        if self.text.startswith('"'):
            found = re.match(r'"((?:[^"]|"")*)"', self.text)
            return found.group(1).replace('""', '"').lower() if found else self.text.lower()
        found = re.match(r"[^\s/*-]+", self.text)
        return found.group().lower() if found else ""


def word(token: Token) -> str:
    """A keyword or name in lower case, or the first character of an operator; '' for a constant."""
    if token.kind == "operator":
        return token.text[:1]
    return token.name if token.kind in ("keyword", "identifier") else ""


def tokens(text: str) -> Iterator[Token]:
    """DuckDB's tokens; each goes on to the next one, so that a space or a comment may follow in it."""
    content = text.encode()
    found = duckdb.tokenize(text)
    ends = [*(start for start, _ in found), len(content)][1:]
    line, counted = 1, 0
    for (start, kind), end in zip(found, ends, strict=False):
        line += content.count(b"\n", counted, start)
        counted = start
        yield Token(kind.name, content[start:end].decode(), line)


def split(tokens: list[Token]) -> Iterator[list[Token]]:
    """The tokens of each statement; one of them may be empty."""
    statement: list[Token] = []
    for token in tokens:
        if token.kind == "operator" and token.text.startswith(";"):
            yield statement
            statement = []
        else:
            statement.append(token)
    yield statement


def names(statement: Sequence[Token]) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Each name in a statement, behind the place of its first token: with what stands before its dots, in lower case.
    `silver."A"` is `(silver, a)`. Keywords are names too, and so are strings: DuckDB takes one for a table's name."""
    place = 0
    while place < len(statement):
        start, parts = place, [statement[place].name] if _is_name(statement[place]) else []
        while parts and place + 2 < len(statement) and is_dot(statement[place + 1]) and _is_name(statement[place + 2]):
            place += 2
            parts.append(statement[place].name)
        if parts:
            yield start, tuple(parts)
        place += 1


def is_dot(token: Token) -> bool:
    """Whether a token is the dot between the parts of a name."""
    return token.kind == "operator" and token.text.startswith(".")


def _is_name(token: Token) -> bool:
    return token.kind in ("identifier", "keyword", "string_const")
