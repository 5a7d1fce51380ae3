#!/usr/bin/env python3
"""Looks for known vulnerabilities in what requirements/*.txt pin, by pip-audit; what was looked at is in reviewed.toml.

Ends with status 1 for a vulnerability that nobody has reviewed, for a package that the database does not know, and for
a review that is over or of a version that is not pinned any more. Where no database answers, the snapshot of one in
requirements/advisories.json stands in for it (make audit-update), which knows nothing newer than its date. What that
does not cover is NOT AUDITED: no result, and a failure where CI is set; so is a snapshot that nobody has reviewed.

usage: scripts/audit.py [REQUIREMENTS...]     all of requirements/*.txt if none is named
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
# days after which a snapshot is said to be old
OLD = 90
# pip-audit's services, the first that answers
SERVICES = ("pypi", "osv")
# requests' words for a service that does not answer; anything else that goes wrong is no excuse
UNREACHED = re.compile(
    r"ConnectionError|ConnectTimeout|ReadTimeout|ProxyError|NameResolutionError|Max retries exceeded"
)
IMAGE = re.compile(r"^(?:ARG \w+_IMAGE=|\s*image: |FROM )(?:\$\{\w+:-)?([a-z][\w./-]*:[\w.-]+)", re.MULTILINE)
# what stands beside pins in a compiled file: comments, hashes, nothing
BESIDE = re.compile(r"\s*(?:#.*|--hash=\w+:[0-9a-f]+(?:\s*\\)?)?")
PIN = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^\]]*\])?==(?!=)([^\s;\\]+)", re.MULTILINE)


@dataclass(frozen=True)
class Review:
    """A vulnerability that somebody has looked at.

    Args:
        id: its name in the database, GHSA-… or PYSEC-… or CVE-….
        reason: why it does not reach us, or why we live with it.
        review: the day on which it has to be looked at again.
    """

    id: str
    package: str
    version: str
    reason: str
    review: date


def main() -> int:
    """Gives the exit status."""
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
        said, accepted = snapshot_review(SNAPSHOT, REVIEWED, today)
        print(said)
        wrong += [said] if in_ci() and not accepted else []
    for one in wrong:
        print(one, file=sys.stderr)
    return 1 if wrong else 0


def read_reviews(text: str) -> list[Review]:
    """The reviewed list: `[[reviewed]]` tables of id, package, version, reason and review.

    Raises:
        SystemExit: an entry lacks one of them, or has an empty reason.
    """
    made = []
    for entry in tomllib.loads(text).get("reviewed", []):
        if set(entry) != set(Review.__annotations__) or not str(entry["reason"]).strip():
            raise SystemExit(f"{REVIEWED.name}: {entry.get('id', entry)} needs {', '.join(Review.__annotations__)}")
        made.append(Review(**entry))
    return made


@dataclass(frozen=True)
class ImageReview:
    """A vulnerability of an image that somebody has looked at; `image` is its name and tag. See `Review`."""

    id: str
    image: str
    reason: str
    review: date


def read_images(text: str) -> list[ImageReview]:
    """The reviewed list's `[[images]]` tables.

    Raises:
        SystemExit: an entry lacks a field, or has an empty reason.
    """
    made = []
    for entry in tomllib.loads(text).get("images", []):
        if set(entry) != set(ImageReview.__annotations__) or not str(entry["reason"]).strip():
            needs = ", ".join(ImageReview.__annotations__)
            raise SystemExit(f"{REVIEWED.name}: {entry.get('id', entry)} needs {needs}")
        made.append(ImageReview(**entry))
    return made


def used_images(root: Path) -> set[str]:
    """The images of others that Dockerfiles build on and docker-compose.yml starts, as name:tag."""
    texts = [file.read_text() for file in (*root.glob("Dockerfile.*"), root / "docker-compose.yml")]
    found = {one for text in texts for one in IMAGE.findall(text)}
    return {one for one in found if not one.startswith("busco-")}


def stale_images(reviews: Sequence[ImageReview], used: set[str], today: date) -> list[str]:
    """What is wrong with the list of images: one is not used, one was never looked at, a day is over."""
    wrong = [f"{REVIEWED.name}: {one.id}: {one.image} is not used" for one in reviews if one.image not in used]
    wrong += [f"{REVIEWED.name}: nobody has looked at {one}" for one in sorted(used - {one.image for one in reviews})]
    return wrong + [
        f"{REVIEWED.name}: {one.id}: was to be looked at again on {one.review}" for one in reviews if one.review < today
    ]


def pinned(files: Iterable[Path]) -> dict[str, set[str]]:
    """Package (as PyPI spells it, normalized) → the versions that these files pin.

    Raises:
        SystemExit: a line names a package in another way than `name==version`, which no advisory is looked up for.
    """
    found: dict[str, set[str]] = {}
    for file in files:
        for number, line in enumerate(file.read_text().splitlines(), start=1):
            if pin := PIN.match(line):
                found.setdefault(normalized(pin[1]), set()).add(pin[2])
            elif not BESIDE.fullmatch(line):
                raise SystemExit(f"NOT AUDITED: {file.name}, line {number} is no name==version: {line.strip()[:80]}")
    return found


def normalized(name: str) -> str:
    """A package's name as it is compared (packaging specification, "name normalization")."""
    return re.sub(r"[-_.]+", "-", name).lower()


def stale(reviews: Sequence[Review], pins: dict[str, set[str]], today: date) -> list[str]:
    """What is wrong with the list itself."""
    wrong = []
    for one in reviews:
        if one.version not in pins.get(normalized(one.package), set()):
            wrong.append(f"{REVIEWED.name}: {one.id}: {one.package} {one.version} is not pinned: take the entry out")
        if one.review < today:
            wrong.append(f"{REVIEWED.name}: {one.id}: was to be looked at again on {one.review}")
    return wrong


def in_ci() -> bool:
    """Whether this runs where nobody reads what is printed."""
    return os.environ.get("CI", "").lower() not in ("", "0", "false")


def from_snapshot(snapshot: Path, file: Path) -> tuple[list[dict[str, Any]] | None, str]:
    """What the snapshot has for each package that a file pins, as pip-audit says it; None where it lacks one, and why.

    A pin that is not in it was not looked up when it was made: that it has no advisory there says nothing.
    """
    if not snapshot.is_file():
        return None, f"there is no {snapshot.name}: make audit-update makes it"
    known: dict[str, list[dict[str, Any]]] = json.loads(snapshot.read_text())["pins"]
    pins = [(name, version) for name, versions in pinned([file]).items() for version in sorted(versions)]
    if missing := [f"{name}=={version}" for name, version in pins if f"{name}=={version}" not in known]:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        return None, f"{snapshot.name} lacks {', '.join(missing[:3])}{more}: make audit-update"
    return [{"name": name, "version": version, "vulns": known[f"{name}=={version}"]} for name, version in pins], ""


def snapshot_review(snapshot: Path, reviewed: Path, today: date) -> tuple[str, bool]:
    """How old the snapshot is, and whether the reviewed list's [snapshot] accepts this one until today or later."""
    made = json.loads(snapshot.read_text())
    review = tomllib.loads(reviewed.read_text()).get("snapshot", {})
    age = (today - date.fromisoformat(made["date"])).days
    told = f"{snapshot.name}: of {made['date']}, {age} days ago" + (", which is OLD" if age > OLD else "")
    if review.get("commit") != made["commit"] or not str(review.get("reason", "")).strip():
        return f"{told}: nobody has reviewed it: write [snapshot] in {reviewed.name}", False
    if review["review"] < today:
        return f"{told}: was accepted until {review['review']}: make audit-update", False
    return f"{told}; accepted until {review['review']}", True


def audited(file: Path, services: list[str]) -> tuple[list[dict[str, Any]] | None, str]:
    """What pip-audit says of each package that a file pins; None where no database answers, and why.

    Args:
        services: those to ask, of which what does not answer is taken out: it would not for the next file either.
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
                lines = done.stderr.strip().splitlines() or ["no answer"]
                if not UNREACHED.search(done.stderr):
                    raise SystemExit(f"{file.name}: pip-audit failed: {lines[-1][:300]}")
                reasons.append(f"{service}: can't be reached")
                services.remove(service)
                continue
            found: list[dict[str, Any]] = json.loads(output.read_text())["dependencies"]
        if found and all("skip_reason" in one for one in found):
            # a mirror of the package index that has no vulnerabilities knows none of the packages
            reasons.append(f"{service}: has none of {len(found)} packages")
            services.remove(service)
            continue
        return found, ""
    return None, "; ".join(reasons) or "no database answers"


def judged(found: Iterable[dict[str, Any]], reviews: Iterable[Review]) -> list[str]:
    """What of pip-audit's answer is to be mended or reviewed.

    Args:
        found: its `dependencies`: name, and version and vulns, or skip_reason.
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
                wrong.append(f"{one['name']} {one['version']}: {' '.join(names)}, mended in {fixed}")
    return wrong


if __name__ == "__main__":
    raise SystemExit(main())
