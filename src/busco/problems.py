"""Lists the problems of a dbt project's nodes; problems of the same kind share a line if many nodes have them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

# if up to this many nodes have a problem, each is listed; if more do, this many of their files are named
SHOWN = 3


@dataclass(frozen=True)
class Problem:
    """What is wrong with a node, and what to do, in one line.

    Attributes:
        node: the node's entry in the manifest, which contains its file and package.
        text: what is wrong.
        kind: the same text without the node's own details; if empty, `text` contains no such details.
        setting: the config that fixes the problem, or `macro` if a macro has to be changed; empty if only a change in
            the node's own files fixes it.
    """

    node: Mapping[str, Any]
    text: str
    kind: str = ""
    setting: str = ""

    @classmethod
    def of(cls, node: Mapping[str, Any], kind: str, *own: object) -> Problem:
        """Returns a problem whose text is `kind`, with each `{}` replaced by one of the node's own details."""
        return cls(node, kind.format(*own), kind.format(*("…" for _ in own)))

    def fixed_by(self, setting: str) -> Problem:
        """Returns this problem with the given `setting`, which fixes it."""
        return replace(self, setting=setting)

    @property
    def file(self) -> str:
        return str(self.node["original_file_path"]).removeprefix("./")

    @property
    def package(self) -> str:
        """The dbt project or package that the node belongs to; '' if the problem's file belongs to no node."""
        return str(self.node.get("package_name") or "")

    def place(self, project: str) -> str:
        """Returns the node's file, preceded by its package if that is not the project itself."""
        return self.file if self.package in ("", project) else f"{self.package}: {self.file}"

    def line(self, project: str) -> str:
        return f"{self.place(project)}: {self.text}"


def refusal(problems: Iterable[Problem], project: str, verbose: bool = False, command: str = "busco dbt parse") -> str:
    """Returns the message that refuses a project: a line for each problem, or for each kind with more
    than three problems.

    Args:
        project: the dbt name of the project.
        verbose: whether to list each problem on its own line, however many there are.
        command: the command that parses the project, as a user types it.
    """
    found = list(problems)
    lines = [problem.line(project) for problem in found] if verbose else _grouped(found, project)
    if len(lines) < len(found):
        lines.append(f"(to list all of them: {command} --verbose)")
    return "\n    ".join(["the lake can't build this dbt project:", *lines])


def some(files: Iterable[str]) -> str:
    """Returns the first few files in order, followed by `…` if there are more: `a, b, c, …`."""
    unique = sorted(set(files))
    return ", ".join([*unique[:SHOWN], *(["…"] if len(unique) > SHOWN else [])])


def _grouped(problems: Sequence[Problem], project: str) -> list[str]:
    kinds: dict[str, list[Problem]] = {}
    for problem in problems:
        kinds.setdefault(problem.kind or problem.text, []).append(problem)
    lines = []
    for kind, found in kinds.items():
        # text that many nodes share and that names their schema is more helpful than `kind`, which names no schema
        texts = Counter(problem.text for problem in found)
        alike = [text for text, number in texts.items() if number > SHOWN]
        lines += [_line(text, [problem for problem in found if problem.text == text], project) for text in alike]
        rest = [problem for problem in found if texts[problem.text] <= SHOWN]
        lines += [_line(kind, rest, project)] if len(rest) > SHOWN else [problem.line(project) for problem in rest]
    return lines


def _line(text: str, found: Sequence[Problem], project: str) -> str:
    return f"{len(found):,} nodes ({some(problem.place(project) for problem in found)}): {text}"
