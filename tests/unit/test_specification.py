"""The specification in docs/ and the code that cites it agree on rules, files and pages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = ("architecture.md", "contributing.md", "iceberg.md", "protocol.md", "upgrading.md")
RULE = re.compile(r"\b([DRPGQ]\d{1,2})\b")


def python(*folders: str) -> str:
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py") if path.resolve() != Path(__file__)]
    return "\n".join(path.read_text() for path in files)


def rules() -> set[str]:
    return set(re.findall(r"^- \*\*([DRPGQ]\d+)\*\*", (DOCS / "protocol.md").read_text(), re.MULTILINE))


def test_every_rule_that_the_code_cites_is_in_the_protocol() -> None:
    # no other upper-case name in the code consists of one of these letters and a digit
    assert set(RULE.findall(python("src", "dags"))) <= rules()


def test_every_rule_of_the_protocol_is_cited_by_code_or_tests() -> None:
    cited = set(RULE.findall(python("src", "dags"))) | set(re.findall(r"([DRPGQ]\d+)", python("tests")))
    assert rules() <= cited
    assert len(rules()) == 31


@pytest.mark.parametrize("page", PAGES)
def test_files_that_the_specification_names_exist(page: str) -> None:
    text = (DOCS / page).read_text()
    named = {name for name in re.findall(r"`([\w./-]+\.(?:py|yaml|sh|md|sql|cfg))`", text) if "<" not in name}
    assert named
    folders = (ROOT, ROOT / "src/busco", DOCS, ROOT / "deploy/aws", *sorted((ROOT / "src/busco").iterdir()))
    missing = sorted(name for name in named if not any((folder / name).is_file() for folder in folders))
    assert missing == []


@pytest.mark.parametrize("page", [*PAGES, "decisions/README.md", "operating.md", "security.md"])
def test_links_in_the_pages_are_not_broken(page: str) -> None:
    path = DOCS / page
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
        assert (path.parent / target).exists(), f"{page}: {target}"


def test_pages_that_the_code_names_are_in_the_repository() -> None:
    named = set(re.findall(r"\b((?:docs/)?(?:[\w-]+/)?[\w.-]+\.md)\b", python("src", "dags")))
    known = {path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.md") if ".venv" not in path.parts}
    assert sorted(name for name in named if name not in known) == []
