"""How the problems of very many nodes of a dbt project are listed: a line for each kind, not for each node."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# up to so many of a kind are listed one by one; of more, so many files are named
SHOWN = 3


@dataclass(frozen=True)
class Problem:
    """What is wrong with a node, and what to do, in one line.

    Attributes:
        node: of the manifest, for its file.
        text: what is wrong.
        kind: the same in words that hold for all nodes with this problem; empty: `text` does.
    """

    node: Mapping[str, Any]
    text: str
    kind: str = ""

    @classmethod
    def of(cls, node: Mapping[str, Any], kind: str, *own: object) -> Problem:
        """A problem whose `{}` in `kind` stand for what is the node's own."""
        return cls(node, kind.format(*own), kind.format(*("…" for _ in own)))

    @property
    def file(self) -> str:
        return str(self.node["original_file_path"]).removeprefix("./")

    @property
    def line(self) -> str:
        return f"{self.file}: {self.text}"


def refusal(problems: Iterable[Problem], verbose: bool = False, command: str = "busco dbt parse") -> str:
    """The message of a refusal of a project: a line for each problem, and one line for each kind with more than three.

    Args:
        verbose: a line for each problem, however many there are.
        command: what parses the project, as a user types it.
    """
    found = list(problems)
    lines = [problem.line for problem in found] if verbose else _grouped(found)
    if len(lines) < len(found):
        lines.append(f"(each of them: {command} --verbose)")
    return "\n    ".join(["the dbt project has models that the lake refuses:", *lines])


def some(files: Iterable[str]) -> str:
    """The first files of many: `a, b, c, …`."""
    unique = list(dict.fromkeys(files))
    return ", ".join([*unique[:SHOWN], *(["…"] if len(unique) > SHOWN else [])])


def _grouped(problems: Sequence[Problem]) -> list[str]:
    kinds: dict[str, list[Problem]] = {}
    for problem in problems:
        kinds.setdefault(problem.kind or problem.text, []).append(problem)
    lines = []
    for kind, found in kinds.items():
        # many that are alike to the letter (one schema) say more than what they share with others (any schema)
        texts = Counter(problem.text for problem in found)
        alike = [text for text, number in texts.items() if number > SHOWN]
        lines += [_line(text, [problem for problem in found if problem.text == text]) for text in alike]
        rest = [problem for problem in found if texts[problem.text] <= SHOWN]
        lines += [_line(kind, rest)] if len(rest) > SHOWN else [problem.line for problem in rest]
    return lines


def _line(text: str, found: Sequence[Problem]) -> str:
    return f"{len(found):,} nodes ({some(problem.file for problem in found)}): {text}"
