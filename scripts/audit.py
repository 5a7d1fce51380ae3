#!/usr/bin/env python3
"""Checks the packages pinned in requirements/*.txt for known vulnerabilities with pip-audit.

reviewed.toml lists the vulnerabilities that have been reviewed. The exit status is 1 for a vulnerability without a
review, for a package that the database doesn't have, and for a review that has expired or is for a version that is no
longer pinned. If no database responds, the snapshot in requirements/advisories.json is used instead; it contains
nothing newer than its date (update it with make audit-update). A file that the snapshot doesn't cover is NOT AUDITED:
it has no result. That is a failure if CI is set, and so is a snapshot without a review.

usage: scripts/audit.py [REQUIREMENTS...]     default: all of requirements/*.txt
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
REVIEWED = ROOT / "requirements" / "reviewed.toml"
SNAPSHOT = ROOT / "requirements" / "advisories.json"
# days after which a snapshot is reported as old
OLD = 90
# pip-audit's services; the first that responds is used
SERVICES = ("pypi", "osv")
# the errors that `requests` raises if a service doesn't respond; any other failure of pip-audit ends the audit
UNREACHED = re.compile(
    r"ConnectionError|ConnectTimeout|ReadTimeout|ProxyError|NameResolutionError|Max retries exceeded"
)
IMAGE = re.compile(r"^(?:ARG \w+_IMAGE=|\s*image: |FROM )(?:\$\{\w+:-)?([a-z][\w./-]*:[\w.-]+)", re.MULTILINE)
# what a compiled requirements file contains besides pins: comments, hashes, empty lines
BESIDE = re.compile(r"\s*(?:#.*|--hash=\w+:[0-9a-f]+(?:\s*\\)?)?")
PIN = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^\]]*\])?==(?!=)([^\s;\\]+)", re.MULTILINE)


@dataclass(frozen=True)
class Review:
    """A vulnerability that has been reviewed.

    Args:
        id: the vulnerability's id in the database: GHSA-…, PYSEC-… or CVE-….
        reason: why it doesn't affect us, or why we accept it.
        review: the day on which it has to be reviewed again.
    """

    id: str
    package: str
    version: str
    reason: str
    review: date


def main() -> int:
    """Audits the files; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("requirements", nargs="*", type=Path)
    files = parser.parse_args().requirements or sorted((ROOT / "requirements").glob("*.txt"))
    reviews, today = read_reviews(REVIEWED.read_text()), datetime.now(UTC).date()
    services = list(SERVICES)
    wrong = stale(reviews, pinned(sorted((ROOT / "requirements").glob("*.txt"))), today)
    wrong += stale_images(read_images(REVIEWED.read_text()), used_images(ROOT), today)
    for file in files:
        by, (found, reason) = "", audited(file, services)
        if found is None:
            by, (found, missing) = "by the snapshot: ", from_snapshot(SNAPSHOT, file)
            reason = f"{reason}; {missing}"
        if found is None:
            print(f"{file.name}: NOT AUDITED: {reason}")
            wrong += [f"{file.name}: not audited: run make audit-update"] if in_ci() else []
            continue
        bad = judged(found, reviews)
        wrong += [f"{file.name}: {one}" for one in bad]
        print(f"{file.name}: {by}{len(found)} packages, {len(bad)} findings")
    if not services and SNAPSHOT.is_file():
        summary, accepted = snapshot_review(SNAPSHOT, REVIEWED, today)
        print(summary)
        wrong += [summary] if in_ci() and not accepted else []
    for one in wrong:
        print(one, file=sys.stderr)
    return 1 if wrong else 0


def read_reviews(text: str) -> list[Review]:
    """Reads the `[[reviewed]]` tables of reviewed.toml, each with id, package, version, reason and review.

    Raises:
        SystemExit: a field is missing or unknown, or a reason is empty.
    """
    reviews = []
    for entry in tomllib.loads(text).get("reviewed", []):
        if set(entry) != set(Review.__annotations__) or not str(entry["reason"]).strip():
            raise SystemExit(f"{REVIEWED.name}: {entry.get('id', entry)} needs {', '.join(Review.__annotations__)}")
        reviews.append(Review(**entry))
    return reviews


@dataclass(frozen=True)
class ImageReview:
    """A reviewed vulnerability in an image: `image` is the image's name and tag; for the other fields, see `Review`."""

    id: str
    image: str
    reason: str
    review: date


def read_images(text: str) -> list[ImageReview]:
    """Reads the `[[images]]` tables of reviewed.toml.

    Raises:
        SystemExit: a field is missing or unknown, or a reason is empty.
    """
    reviews = []
    for entry in tomllib.loads(text).get("images", []):
        if set(entry) != set(ImageReview.__annotations__) or not str(entry["reason"]).strip():
            needs = ", ".join(ImageReview.__annotations__)
            raise SystemExit(f"{REVIEWED.name}: {entry.get('id', entry)} needs {needs}")
        reviews.append(ImageReview(**entry))
    return reviews


def used_images(root: Path) -> set[str]:
    """Returns the third-party images that the Dockerfiles build on and the Compose files start, as name:tag."""
    texts = [file.read_text() for file in (*root.glob("Dockerfile.*"), *root.glob("docker-compose*.yml"))]
    found = {one for text in texts for one in IMAGE.findall(text)}
    return {one for one in found if not one.startswith("busco-")}


def stale_images(reviews: Sequence[ImageReview], used: set[str], today: date) -> list[str]:
    """Returns the problems with the image reviews: images that are not used or have no review, and expired reviews."""
    wrong = [f"{REVIEWED.name}: {one.id}: {one.image} is not used" for one in reviews if one.image not in used]
    wrong += [f"{REVIEWED.name}: {one} has not been reviewed" for one in sorted(used - {one.image for one in reviews})]
    return wrong + [
        f"{REVIEWED.name}: {one.id}: another review was due on {one.review}" for one in reviews if one.review < today
    ]


def pinned(files: Iterable[Path]) -> dict[str, set[str]]:
    """Returns the pinned versions of each package, by normalized PyPI name.

    Raises:
        SystemExit: a line doesn't specify a package as `name==version`, so no advisories could be looked up for it.
    """
    found: dict[str, set[str]] = {}
    for file in files:
        for number, line in enumerate(file.read_text().splitlines(), start=1):
            if pin := PIN.match(line):
                found.setdefault(normalized(pin[1]), set()).add(pin[2])
            elif not BESIDE.fullmatch(line):
                raise SystemExit(f"NOT AUDITED: {file.name}, line {number} is not name==version: {line.strip()[:80]}")
    return found


def normalized(name: str) -> str:
    """Normalizes a package's name for comparison (packaging specification, "name normalization")."""
    return re.sub(r"[-_.]+", "-", name).lower()


def stale(reviews: Sequence[Review], pins: dict[str, set[str]], today: date) -> list[str]:
    """Returns the problems with the reviews themselves: versions that are no longer pinned, and expired reviews."""
    wrong = []
    for one in reviews:
        if one.version not in pins.get(normalized(one.package), set()):
            wrong.append(f"{REVIEWED.name}: {one.id}: {one.package} {one.version} is not pinned: remove the entry")
        if one.review < today:
            wrong.append(f"{REVIEWED.name}: {one.id}: another review was due on {one.review}")
    return wrong


def in_ci() -> bool:
    """Whether this script runs in CI, where nobody reads its output."""
    return os.environ.get("CI", "").lower() not in ("", "0", "false")


def from_snapshot(snapshot: Path, file: Path) -> tuple[list[dict[str, Any]] | None, str]:
    """Returns the snapshot's entries for a file's pins in pip-audit's format; None and the reason if a pin is missing.

    A missing pin wasn't looked up when the snapshot was created, so it can't be reported as having no advisories.
    """
    if not snapshot.is_file():
        return None, f"there is no {snapshot.name}: run make audit-update"
    known: dict[str, list[dict[str, Any]]] = json.loads(snapshot.read_text())["pins"]
    pins = [(name, version) for name, versions in pinned([file]).items() for version in sorted(versions)]
    if missing := [f"{name}=={version}" for name, version in pins if f"{name}=={version}" not in known]:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        return None, f"{snapshot.name} lacks {', '.join(missing[:3])}{more}: run make audit-update"
    return [{"name": name, "version": version, "vulns": known[f"{name}=={version}"]} for name, version in pins], ""


def snapshot_review(snapshot: Path, reviewed: Path, today: date) -> tuple[str, bool]:
    """Returns the snapshot's age as text, and whether [snapshot] in reviewed.toml still accepts it today."""
    made = json.loads(snapshot.read_text())
    review = tomllib.loads(reviewed.read_text()).get("snapshot", {})
    age = (today - date.fromisoformat(made["date"])).days
    about = f"{snapshot.name}: from {made['date']}, {age} days old" + (" (OLD)" if age > OLD else "")
    if review.get("commit") != made["commit"] or not str(review.get("reason", "")).strip():
        return f"{about}: it has not been reviewed: add it to [snapshot] in {reviewed.name}", False
    if review["review"] < today:
        return f"{about}: it was accepted until {review['review']}: run make audit-update", False
    return f"{about}; accepted until {review['review']}", True


def audited(file: Path, services: list[str]) -> tuple[list[dict[str, Any]] | None, str]:
    """Returns pip-audit's result for each package that a file pins; None, with the reason, if no database responds.

    Args:
        file: the requirements file.
        services: the services to try. One that doesn't respond is removed from the list, because it wouldn't respond
            for the next file either.
    """
    reasons = []
    for service in tuple(services):
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "audit.json"
            command = [
                sys.executable, "-m", "pip_audit", "--requirement", str(file), "--no-deps", "--disable-pip",
                "--vulnerability-service", service, "--progress-spinner", "off", "--format", "json",
                "--output", str(output), "--timeout", "10",
            ]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
            if not output.is_file() or not output.read_text().strip():
                lines = done.stderr.strip().splitlines() or ["no output"]
                if not UNREACHED.search(done.stderr):
                    raise SystemExit(f"{file.name}: pip-audit failed: {lines[-1][:300]}")
                reasons.append(f"{service}: can't be reached")
                services.remove(service)
                continue
            found: list[dict[str, Any]] = json.loads(output.read_text())["dependencies"]
        if found and all("skip_reason" in one for one in found):
            # pip-audit skips every package if a mirror of the package index has no vulnerability data
            reasons.append(f"{service}: has no data on any of the {len(found)} packages")
            services.remove(service)
            continue
        return found, ""
    return None, "; ".join(reasons) or "no database responds"


def judged(found: Iterable[dict[str, Any]], reviews: Iterable[Review]) -> list[str]:
    """Returns the findings in pip-audit's result that have to be fixed or reviewed.

    Args:
        found: pip-audit's `dependencies`: each has a name, and either version and vulns, or skip_reason.
        reviews: the reviewed vulnerabilities.
    """
    known = {(normalized(one.package), one.version, one.id) for one in reviews}
    wrong = []
    for one in found:
        if "skip_reason" in one:
            wrong.append(f"{one['name']}: not audited: {one['skip_reason']}")
            continue
        for vulnerability in one["vulns"]:
            names = [vulnerability["id"], *vulnerability.get("aliases", [])]
            if not any((normalized(one["name"]), one["version"], name) in known for name in names):
                fixed = ", ".join(vulnerability.get("fix_versions", [])) or "no version"
                wrong.append(f"{one['name']} {one['version']}: {' '.join(names)}, fixed in {fixed}")
    return wrong


if __name__ == "__main__":
    raise SystemExit(main())
