#!/usr/bin/env python3
"""Looks for known vulnerabilities in what requirements/*.txt pin, by pip-audit; what was looked at is in reviewed.toml.

Ends with status 1 for a vulnerability that nobody has reviewed, for a package that the database does not know, and for
a review that is over or of a version that is not pinned any more. Where the database can't be reached it says NOT
AUDITED and ends with status 0: that is no result.

usage: scripts/audit.py [REQUIREMENTS...]     all of requirements/*.txt if none is named
"""

from __future__ import annotations

import argparse
import json
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
# pip-audit's services, the first that answers
SERVICES = ("pypi", "osv")
# requests' words for a service that does not answer; anything else that goes wrong is no excuse
UNREACHED = re.compile(
    r"ConnectionError|ConnectTimeout|ReadTimeout|ProxyError|NameResolutionError|Max retries exceeded"
)
PIN = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^\]]*\])?==([^\s;\\]+)", re.MULTILINE)


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
    reviews = read_reviews(REVIEWED.read_text())
    wrong = stale(reviews, pinned(sorted((ROOT / "requirements").glob("*.txt"))), datetime.now(UTC).date())
    for file in files:
        found, reason = audited(file)
        if found is None:
            print(f"{file.name}: NOT AUDITED: {reason}")
            continue
        bad = judged(found, reviews)
        wrong += [f"{file.name}: {one}" for one in bad]
        print(f"{file.name}: {len(found)} packages, {len(bad)} findings")
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


def pinned(files: Iterable[Path]) -> dict[str, set[str]]:
    """Package (as PyPI spells it, normalized) → the versions that these files pin."""
    found: dict[str, set[str]] = {}
    for file in files:
        for name, version in PIN.findall(file.read_text()):
            found.setdefault(normalized(name), set()).add(version)
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


def audited(file: Path) -> tuple[list[dict[str, Any]] | None, str]:
    """What pip-audit says of each package that a file pins; None where no database answers, and why."""
    reasons = []
    for service in SERVICES:
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
                continue
            found: list[dict[str, Any]] = json.loads(output.read_text())["dependencies"]
        if found and all("skip_reason" in one for one in found):
            # a mirror of the package index that has no vulnerabilities knows none of the packages
            reasons.append(f"{service}: has none of {len(found)} packages")
            continue
        return found, ""
    return None, "; ".join(reasons)


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
