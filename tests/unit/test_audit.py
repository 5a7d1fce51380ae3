"""`scripts/audit.py` reports every known vulnerability, and never reports an unaudited package as safe."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def _script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, ROOT / f"scripts/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


audit, advisories = _script("audit"), _script("advisories")

REVIEW = """
[[reviewed]]
id = "GHSA-1"
package = "Some_Package"
version = "1.0"
reason = "no page of ours calls it"
review = 2027-03-01
"""
FOUND = {"name": "some-package", "version": "1.0", "vulns": [{"id": "PYSEC-1", "aliases": ["GHSA-1"]}]}


def test_a_vulnerability_is_a_finding_until_it_is_reviewed_for_that_version() -> None:
    reviews = audit.read_reviews(REVIEW)
    assert audit.judged([FOUND], reviews) == []
    assert audit.judged([FOUND], []) == ["some-package 1.0: PYSEC-1 GHSA-1, fixed in no version"]
    assert len(audit.judged([{**FOUND, "version": "1.1"}], reviews)) == 1
    other: dict[str, Any] = {**FOUND, "vulns": [{"id": "PYSEC-2", "fix_versions": ["2.0"]}]}
    assert audit.judged([other], reviews) == ["some-package 1.0: PYSEC-2, fixed in 2.0"]


def test_a_package_that_is_not_in_the_database_is_a_finding() -> None:
    assert audit.judged([{"name": "x", "skip_reason": "not found"}], []) == ["x: not audited: not found"]


def test_a_review_expires_after_its_date_and_when_the_version_changes() -> None:
    reviews = audit.read_reviews(REVIEW)
    assert audit.stale(reviews, {"some-package": {"1.0"}}, date(2027, 3, 1)) == []
    assert "review was due on 2027-03-01" in audit.stale(reviews, {"some-package": {"1.0"}}, date(2027, 3, 2))[0]
    assert (
        "some_package 1.0 is not pinned" in audit.stale(reviews, {"some-package": {"1.1"}}, date(2027, 1, 1))[0].lower()
    )


@pytest.mark.parametrize("left_out", ["id", "package", "version", "reason", "review"])
def test_every_field_of_a_review_is_required(left_out: str) -> None:
    lines = [line for line in REVIEW.splitlines() if not line.startswith(left_out)]
    with pytest.raises(SystemExit, match="needs id, package, version, reason, review"):
        audit.read_reviews("\n".join(lines))


def test_each_of_our_reviews_is_for_a_pinned_version_and_has_not_expired() -> None:
    pins = audit.pinned(sorted((ROOT / "requirements").glob("*.txt")))
    assert pins["apache-airflow"] == {"2.10.5"}
    assert len(pins) > 300
    reviews = audit.read_reviews(audit.REVIEWED.read_text())
    assert audit.stale(reviews, pins, date.today()) == []


@pytest.mark.parametrize(
    "line", ["evil @ https://example.com/evil.whl", "evil == 1.0", "-e git+https://example.com/evil", "-r other.txt",
             "evil>=1", "evil", "--index-url https://example.com", "evil===1.0"],
)  # fmt: skip
def test_a_requirements_line_that_is_not_a_pin_is_an_error(tmp_path: Path, line: str) -> None:
    file = tmp_path / "dbt.txt"
    known = (
        "# by uv\n\nsome-package==1.0 ; sys_platform == 'linux' \\\n    --hash=sha256:00ff \\\n    --hash=sha256:11\n"
    )
    file.write_text(f"{known}    # via other\n")
    assert audit.pinned([file]) == {"some-package": {"1.0"}}
    file.write_text(f"{known}{line}\n")
    with pytest.raises(SystemExit, match=r"dbt\.txt, line 6 is not name==version"):
        audit.pinned([file])


def test_packages_are_reported_as_not_audited_if_no_database_responds(tmp_path: Path) -> None:
    (tmp_path / "few.txt").write_text("click==8.1.8\n")
    nowhere = {"HTTPS_PROXY": "http://127.0.0.1:1", "https_proxy": "http://127.0.0.1:1"}
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/audit.py", tmp_path / "few.txt"],
        env={**os.environ, **nowhere, "CI": ""}, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = "few.txt: NOT AUDITED: pypi: can't be reached; osv: can't be reached; advisories.json lacks click==8.1.8"
    assert done.stdout.startswith(report)
    assert "findings" not in done.stdout


def test_a_failed_audit_is_not_reported_as_one_without_findings(tmp_path: Path) -> None:
    (tmp_path / "broken.txt").write_text("click==\n")
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/audit.py", tmp_path / "broken.txt"],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert "broken.txt: pip-audit failed: " in done.stderr


# -- the snapshot that is used if no database responds ----------------------------------------------------------------

WITHDRAWN = "id: PYSEC-3\nwithdrawn: '2024-01-01T00:00:00Z'\naffected:\n- package: {name: click, ecosystem: PyPI}\n"
RECORD = """
id: PYSEC-1
aliases: [CVE-2024-1, GHSA-1]
affected:
- package: {name: Some.Package, ecosystem: PyPI}
  ranges:
  - type: GIT
    events: [{introduced: "0"}]
  - type: ECOSYSTEM
    events: [{introduced: "1.0"}, {fixed: "1.2"}, {introduced: "2.0rc1"}, {last_affected: "2.3"}]
  versions: ["0.9"]
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone of an advisory database with pypa's layout: a folder for each package, records in YAML."""
    folder = tmp_path / "clone"
    for path, text in (("some-package/PYSEC-1", RECORD), ("click/PYSEC-3", WITHDRAWN), ("other/PYSEC-4", "id: {")):
        file = folder / f"vulns/{path}.yaml"
        file.parent.mkdir(parents=True)
        file.write_text(text)
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@example.com"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "records", "--date", "2026-11-01T12:00:00Z"]):
        dated = {**os.environ, "GIT_COMMITTER_DATE": "2026-11-01T12:00:00Z"}
        subprocess.run([*git, *arguments], check=True, env=dated)
    return folder


def test_a_snapshot_contains_each_pin_with_the_advisories_for_its_version(clone: Path) -> None:
    versions = {"0.9", "1.0", "1.1.9", "1.2", "2.0", "2.3", "2.3.1"}
    made = advisories.snapshot(clone, {"some-package": versions, "click": {"8.1.8"}})
    assert made["date"] == "2026-11-01"
    assert made["pins"]["click==8.1.8"] == [], "a withdrawn advisory is left out"
    hit = {pin.partition("==")[2] for pin, found in made["pins"].items() if found}
    assert hit == {"0.9", "1.0", "1.1.9", "2.0", "2.3"}
    advisory = {"id": "PYSEC-1", "aliases": ["CVE-2024-1", "GHSA-1"], "fix_versions": ["1.2"]}
    assert made["pins"]["some-package==1.0"] == [advisory]
    assert json.loads(advisories.text_of(made)) == made


def test_no_snapshot_is_made_from_a_clone_without_records(clone: Path) -> None:
    with pytest.raises(SystemExit, match="has no OSV records"):
        advisories.snapshot(clone, {"nothing": {"1.0"}})


def test_our_snapshot_covers_every_pin_and_has_been_reviewed() -> None:
    for file in sorted((ROOT / "requirements").glob("*.txt")):
        found, missing = audit.from_snapshot(audit.SNAPSHOT, file)
        assert found is not None, missing
        assert audit.judged(found, audit.read_reviews(audit.REVIEWED.read_text())) == []
    message, accepted = audit.snapshot_review(audit.SNAPSHOT, audit.REVIEWED, date.today())
    assert accepted, message


def test_each_third_party_image_is_reviewed_and_each_review_is_for_an_image_in_use() -> None:
    reviews, used = audit.read_images(audit.REVIEWED.read_text()), audit.used_images(ROOT)
    assert used == {
        "python:3.11-slim-bookworm", "postgres:16.3-alpine", "redis:7.2-alpine", "nginx:1.27-alpine",
        "certbot/certbot:v2.11.0",
    }  # fmt: skip
    assert audit.stale_images(reviews, used, date.today()) == []
    (first,) = audit.stale_images(reviews, {*used, "other:1.0"}, date.today())
    assert "other:1.0 has not been reviewed" in first
    assert any("is not used" in one for one in audit.stale_images(reviews, set(), date.today()))


ACCEPTED = '[snapshot]\ncommit = "c1"\nreason = "the newest"\nreview = {day}\n'
FOUND_THERE = [{"id": "PYSEC-1", "aliases": [], "fix_versions": ["1.2"]}]


@pytest.mark.parametrize(
    ("ci", "accepted_until", "snapshot", "status", "expected"),
    [
        ("true", "", None, 1, "not audited: run make audit-update"),
        ("", "", None, 0, "NOT AUDITED"),
        ("true", "", {"some-package==1.0": []}, 1, "it has not been reviewed"),
        ("true", "2999-01-01", {"some-package==1.0": []}, 0, "by the snapshot: 1 packages, 0 findings"),
        ("true", "2999-01-01", {"some-package==1.0": []}, 0, "from 2026-11-01"),
        ("true", "2026-11-02", {"some-package==1.0": []}, 1, "was accepted until 2026-11-02: run make audit-update"),
        ("true", "2999-01-01", {"some-package==0.9": []}, 1, "lacks some-package==1.0: run make audit-update"),
        ("", "2999-01-01", {"some-package==1.0": FOUND_THERE}, 1, "some-package 1.0: PYSEC-1, fixed in 1.2"),
    ],
)
def test_without_a_database_ci_passes_only_with_a_reviewed_snapshot_of_all_pins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    ci: str, accepted_until: str, snapshot: dict[str, Any] | None, status: int, expected: str,
) -> None:  # fmt: skip
    def no_database(_: Path, services: list[str]) -> tuple[None, str]:
        services.clear()
        return None, "no database responds"

    requirements = tmp_path / "requirements"
    requirements.mkdir()
    (requirements / "few.txt").write_text("some-package==1.0\n")
    (tmp_path / "docker-compose.yml").touch()
    reviewed = ACCEPTED.format(day=accepted_until) if accepted_until else ""
    (requirements / "reviewed.toml").write_text(reviewed)
    if snapshot is not None:
        made = {"source": "a local clone", "commit": "c1", "date": "2026-11-01", "pins": snapshot}
        (requirements / "advisories.json").write_text(json.dumps(made))
    for name, value in {
        "ROOT": tmp_path, "REVIEWED": requirements / "reviewed.toml", "SNAPSHOT": requirements / "advisories.json",
        "audited": no_database,
    }.items():  # fmt: skip
        monkeypatch.setattr(audit, name, value)
    monkeypatch.setenv("CI", ci)
    monkeypatch.setattr(sys, "argv", ["audit.py"])
    assert audit.main() == status
    printed = capsys.readouterr()
    assert expected in printed.out + printed.err


# -- images by digest -------------------------------------------------------------------------------------------------

DIGEST = "sha256:" + "a" * 64


def lock(folder: Path, answer: str) -> subprocess.CompletedProcess[str]:
    """Runs scripts/lock_images.sh on a copy of the repository's files, with a `docker` that only runs `answer`."""
    files = (*ROOT.glob("docker-compose*.yml"), *ROOT.glob("Dockerfile.*"), ROOT / "scripts/lock_images.sh")
    for name in (str(file.relative_to(ROOT)) for file in files):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text((ROOT / name).read_text())
    (folder / "scripts/lib").mkdir(exist_ok=True)
    (folder / "scripts/lib/images.sh").write_text((ROOT / "scripts/lib/images.sh").read_text())
    (folder / "bin").mkdir(exist_ok=True)
    (folder / "bin/docker").write_text(f"#!/bin/sh\n{answer}\n")
    (folder / "bin/docker").chmod(0o755)
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    command = ["bash", str(folder / "scripts/lock_images.sh")]
    return subprocess.run(command, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("answer", ["exit 1", "echo no digest", f"echo {DIGEST[:-1]}"])
def test_images_are_not_locked_if_the_registry_returns_no_digest(tmp_path: Path, answer: str) -> None:
    assert lock(tmp_path, answer).returncode == 1
    assert sorted(file.name for file in tmp_path.glob("images.lock*")) == []


def test_images_are_used_by_their_digest_if_locked_and_otherwise_by_their_tag(tmp_path: Path) -> None:
    def locked(image: str) -> subprocess.CompletedProcess[str]:
        command = ["bash", "-c", '. scripts/lib/images.sh; locked "$1"', "-", image]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert lock(tmp_path, f"echo {DIGEST}").returncode == 0
    for image in audit.used_images(ROOT):
        assert locked(image).stdout == f"{image}@{DIGEST}\n"
    assert locked("python:3.12").returncode == 1, "a changed base image must be locked again first"
    (tmp_path / "images.lock").unlink()
    assert locked("python:3.12").stdout == "python:3.12\n"
