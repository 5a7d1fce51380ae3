"""Each row of docs/security.md names existing tests and files."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def rows() -> list[str]:
    text = (ROOT / "docs/security.md").read_text()
    return [line for line in text.splitlines() if line.startswith("|") and not re.match(r"\|(-|.* test \|$)", line)]


def test_each_row_names_existing_tests() -> None:
    known = set()
    for file in (ROOT / "tests").rglob("test_*.py"):
        known |= set(re.findall(r"^(?:async )?def (test_\w+)", file.read_text(), re.MULTILINE))
    assert len(rows()) > 25
    for row in rows():
        named = re.findall(r"`(test_\w+)`", row.split("|")[-2])
        assert named, row
        assert set(named) <= known, row


def test_each_file_that_is_named_exists() -> None:
    for row in rows():
        for path in re.findall(r"`([\w./-]+\.(?:py|yaml|yml|sh|toml))`", row):
            assert (ROOT / path).exists() or (ROOT / "src/busco" / path).exists(), path
