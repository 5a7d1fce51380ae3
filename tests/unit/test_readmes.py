"""README.pt-BR.md matches README.md: the same headings in the same order, and the same commands, links and names."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
ENGLISH, PORTUGUESE = ((ROOT / name).read_text() for name in ("README.md", "README.pt-BR.md"))
# a section for one team only: the names that it already knows from its earlier platform
OWN = "## Os nomes que você já conhece"
TITLES = {
    "Three ways to run it": "Três formas de rodar",
    "Two commands": "Dois comandos",
    "What you see": "O que você vê",
    "In Docker Compose": "No Docker Compose",
    "Documentation": "Documentação",
}


def commands(text: str) -> list[str]:
    """Returns the commands in a text's code blocks, without comments."""
    blocks = re.findall(r"^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if re.match(r"(make|\.venv|eval)\b", line)]


def test_headings_are_the_same_in_the_same_order() -> None:
    english = re.findall(r"^## (.*)", ENGLISH, re.MULTILINE)
    portuguese = re.findall(r"^## (.*)", PORTUGUESE.split(OWN)[0], re.MULTILINE)
    assert [TITLES[title] for title in english] == portuguese


def test_commands_are_the_same_in_the_same_order() -> None:
    assert commands(ENGLISH) == commands(PORTUGUESE)
    assert len(commands(ENGLISH)) > 8


def test_links_and_names_in_tables_and_text_are_the_same() -> None:
    for pattern in (r"\]\(([^)]+)\)", r"`([^`\n]+)`", r"https?://[\w.:]+"):
        own = PORTUGUESE.split(OWN)[0]
        english = [found for found in re.findall(pattern, ENGLISH) if "<" not in found]
        assert sorted(english) == sorted(found for found in re.findall(pattern, own) if "<" not in found), pattern


def test_targets_links_and_paths_in_the_readmes_exist() -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for command in commands(ENGLISH):
        if command.startswith("make "):
            assert command.split()[1] in targets, command
    for text in (ENGLISH, PORTUGUESE):
        for link in re.findall(r"\]\(([^)]+)\)", text):
            assert (ROOT / link).exists(), link
    for line in PORTUGUESE.split(OWN)[1].splitlines()[3:]:
        for name in re.findall(r"`([^`]+)`", line.split("|")[2]):
            assert (ROOT / name).exists(), name
