"""The Portuguese README and pages match the English ones: the same structure, commands, links and names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENGLISH, PORTUGUESE = ((ROOT / name).read_text() for name in ("README.md", "README.pt-BR.md"))
# the pages in docs/ that are also in Portuguese, each as <name>.pt-BR.md
TRANSLATED = ("operating", "deploying")
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
    """Returns the commands in the text's code blocks, without comments."""
    blocks = re.findall(r"^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if re.match(r"(make|\.venv|eval)\b", line)]


def parts(page: Path) -> list[str]:
    """Returns a page's paragraphs (each with its heading), list items, table rows and code blocks, in order."""
    _title, _link_to_the_other_language, text = page.read_text().split("\n\n", 2)
    return re.split(r"\n+(?=\n|\||\d\. |- )", text)


def shape(part: str) -> str:
    """Returns what a translation keeps of a part: code blocks, a row's cells, a heading's level, an item's number."""
    code = r"^```\n.*?^```|^    .*?$"
    blocks = re.findall(code, part, re.MULTILINE | re.DOTALL)
    text = re.sub(code, "", part, flags=re.MULTILINE | re.DOTALL)
    return "\n".join([*blocks, *re.findall(r"^#+|^\d\. |^- |\|", text, re.MULTILINE)])


def names(page: Path, part: str) -> list[str]:
    """Returns the code, messages and links in a part of a page; placeholders like <id> may be translated."""
    text = re.sub(r"<[^>]*>", "<>", " ".join(part.split()))
    return sorted([*re.findall(r"```[^`]+```|`[^`]+`|\"[^\"]+\"", text), *links(page, part)])


def links(page: Path, part: str) -> list[str]:
    """Returns where a part's links lead: the file, by its English name, and the number of the heading."""
    found = []
    for target, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", part):
        linked = page.parent / target if target else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), f"{target}#{anchor}"
        found.append(f"{in_english(target)}#{anchors(linked).index(anchor) if anchor else ''}")
    return found


def in_english(text: str) -> str:
    """Returns a text in which links to Portuguese pages lead to the English ones."""
    return text.replace(".pt-BR.md", ".md")


def anchors(page: Path) -> list[str]:
    """Returns the anchors that GitHub gives a page's headings, in order."""
    headings = re.findall(r"^#+ (.*)", page.read_text(), re.MULTILINE)
    return [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]


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
        english = [found for found in re.findall(pattern, in_english(ENGLISH)) if "<" not in found]
        portuguese = [found for found in re.findall(pattern, in_english(own)) if "<" not in found]
        assert sorted(english) == sorted(portuguese), pattern


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


@pytest.mark.parametrize("name", TRANSLATED)
def test_a_translated_page_has_the_same_headings_rows_code_blocks_names_messages_and_links(name: str) -> None:
    page, translation = ROOT / f"docs/{name}.md", ROOT / f"docs/{name}.pt-BR.md"
    english, portuguese = parts(page), parts(translation)
    assert [shape(part) for part in english] == [shape(part) for part in portuguese]
    assert [names(page, part) for part in english] == [names(translation, part) for part in portuguese]
    assert len(english) > 100


@pytest.mark.parametrize("name", TRANSLATED)
def test_a_translated_page_names_its_original_and_links_to_other_translations(name: str) -> None:
    page, translation = ROOT / f"docs/{name}.md", ROOT / f"docs/{name}.pt-BR.md"
    assert page.read_text().split("\n\n")[1] == f"[Em português]({name}.pt-BR.md)"
    assert f"[docs/{name}.md]({name}.md)" in translation.read_text().split("\n\n")[1]
    for part in parts(translation):
        assert not re.search(rf"\]\(({'|'.join(TRANSLATED)})\.md", part), part
