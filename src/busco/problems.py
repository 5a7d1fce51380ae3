"""Lists the problems of a dbt project's nodes: one line for each kind of problem if many nodes have it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# if up to this many nodes have a problem, each is listed; if more do, this many of their files are named
SHOWN = 3


@dataclass(frozen=True)
class Problem:
    """What is wrong with a node, and what to do, in one line.

    Attributes:
        node: the node in the manifest, for its file.
        text: what is wrong.
        kind: the same text without the node's own details; if empty, `text` applies to all nodes with this problem.
    """

    node: Mapping[str, Any]
    text: str
    kind: str = ""

    @classmethod
    def of(cls, node: Mapping[str, Any], kind: str, *own: object) -> Problem:
        """Returns a problem whose text is `kind`, with each `{}` replaced by one of the node's own details."""
        return cls(node, kind.format(*own), kind.format(*("…" for _ in own)))

    @property
    def file(self) -> str:
        return str(self.node["original_file_path"]).removeprefix("./")

    @property
    def line(self) -> str:
        return f"{self.file}: {self.text}"


def refusal(problems: Iterable[Problem], verbose: bool = False, command: str = "busco dbt parse") -> str:
    """Returns the message that refuses a project: a line for each problem, or one line for more than three of a kind.

    Args:
        verbose: list each problem on its own line, however many there are.
        command: the command that parses the project, as a user types it.
    """
    found = list(problems)
    lines = [problem.line for problem in found] if verbose else _grouped(found)
    if len(lines) < len(found):
        lines.append(f"(to list all of them: {command} --verbose)")
    return "\n    ".join(["the lake can't build this dbt project:", *lines])


def some(files: Iterable[str]) -> str:
    """Returns the first few files, followed by `…` if there are more: `a, b, c, …`."""
    unique = list(dict.fromkeys(files))
    return ", ".join([*unique[:SHOWN], *(["…"] if len(unique) > SHOWN else [])])


def _grouped(problems: Sequence[Problem]) -> list[str]:
    kinds: dict[str, list[Problem]] = {}
    for problem in problems:
        kinds.setdefault(problem.kind or problem.text, []).append(problem)
    lines = []
    for kind, found in kinds.items():
        # identical texts (all about one schema) are more helpful than the text of their kind (about any schema)
        texts = Counter(problem.text for problem in found)
        alike = [text for text, number in texts.items() if number > SHOWN]
        lines += [_line(text, [problem for problem in found if problem.text == text]) for text in alike]
        rest = [problem for problem in found if texts[problem.text] <= SHOWN]
        lines += [_line(kind, rest)] if len(rest) > SHOWN else [problem.line for problem in rest]
    return lines


def _line(text: str, found: Sequence[Problem]) -> str:
    return f"{len(found):,} nodes ({some(problem.file for problem in found)}): {text}"
