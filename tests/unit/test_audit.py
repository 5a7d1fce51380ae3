"""`scripts/audit.py`: nothing that is known to be vulnerable goes unseen, and nothing unseen counts as good."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
_SPEC = importlib.util.spec_from_file_location("audit", ROOT / "scripts/audit.py")
assert _SPEC is not None
assert _SPEC.loader is not None
audit = importlib.util.module_from_spec(_SPEC)
sys.modules["audit"] = audit
_SPEC.loader.exec_module(audit)

REVIEW = """
[[reviewed]]
id = "GHSA-1"
package = "Some_Package"
version = "1.0"
reason = "no page of ours calls it"
review = 2027-03-01
"""
FOUND = {"name": "some-package", "version": "1.0", "vulns": [{"id": "PYSEC-1", "aliases": ["GHSA-1"]}]}


def test_a_vulnerability_is_a_finding_until_somebody_has_reviewed_it_in_that_version() -> None:
    reviews = audit.read_reviews(REVIEW)
    assert audit.judged([FOUND], reviews) == []
    assert audit.judged([FOUND], []) == ["some-package 1.0: PYSEC-1 GHSA-1, mended in no version"]
    assert len(audit.judged([{**FOUND, "version": "1.1"}], reviews)) == 1
    other: dict[str, Any] = {**FOUND, "vulns": [{"id": "PYSEC-2", "fix_versions": ["2.0"]}]}
    assert audit.judged([other], reviews) == ["some-package 1.0: PYSEC-2, mended in 2.0"]


def test_a_package_that_the_database_does_not_know_is_a_finding() -> None:
    assert audit.judged([{"name": "x", "skip_reason": "not found"}], []) == ["x: not audited: not found"]


def test_a_review_ends_with_its_day_and_with_its_version() -> None:
    reviews = audit.read_reviews(REVIEW)
    assert audit.stale(reviews, {"some-package": {"1.0"}}, date(2027, 3, 1)) == []
    assert "to be looked at again on 2027-03-01" in audit.stale(reviews, {"some-package": {"1.0"}}, date(2027, 3, 2))[0]
    assert (
        "some_package 1.0 is not pinned" in audit.stale(reviews, {"some-package": {"1.1"}}, date(2027, 1, 1))[0].lower()
    )


@pytest.mark.parametrize("left_out", ["id", "package", "version", "reason", "review"])
def test_a_review_says_everything(left_out: str) -> None:
    lines = [line for line in REVIEW.splitlines() if not line.startswith(left_out)]
    with pytest.raises(SystemExit, match="needs id, package, version, reason, review"):
        audit.read_reviews("\n".join(lines))


def test_each_entry_of_our_list_is_of_a_pinned_version_and_its_day_has_not_come() -> None:
    pins = audit.pinned(sorted((ROOT / "requirements").glob("*.txt")))
    assert pins["apache-airflow"] == {"2.10.5"}
    assert len(pins) > 300
    reviews = audit.read_reviews(audit.REVIEWED.read_text())
    assert audit.stale(reviews, pins, date.today()) == []


def test_where_no_database_answers_nothing_is_said_to_be_good(tmp_path: Path) -> None:
    (tmp_path / "few.txt").write_text("click==8.1.8\n")
    nowhere = {"HTTPS_PROXY": "http://127.0.0.1:1", "https_proxy": "http://127.0.0.1:1"}
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/audit.py", tmp_path / "few.txt"],
        env={**os.environ, **nowhere}, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "few.txt: NOT AUDITED: pypi: can't be reached; osv: can't be reached\n"
    assert "findings" not in done.stdout


def test_an_audit_that_fails_is_no_audit_that_found_nothing(tmp_path: Path) -> None:
    (tmp_path / "broken.txt").write_text("click==\n")
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/audit.py", tmp_path / "broken.txt"],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert "broken.txt: pip-audit failed: " in done.stderr
