#!/usr/bin/env python3
"""Writes requirements/advisories.json: the advisories in a clone of a public advisory database for each pinned package.

CLONE is a clone of github.com/pypa/advisory-database, or of another repository of OSV records (YAML or JSON) such as
github.com/github/advisory-database; by default, the former is cloned. Before you commit the file, read its diff, review
each advisory (reviewed.toml), and copy the `commit` in it to [snapshot] in reviewed.toml.

usage: scripts/advisories.py [CLONE]
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from audit import ROOT, SNAPSHOT, normalized, pinned
from packaging.version import InvalidVersion, Version

SOURCE = "https://github.com/pypa/advisory-database"
# vulns/ in pypa's repository has a folder for each package; from GitHub's, only reviewed advisories are read
FOLDERS = ("vulns/", "advisories/github-reviewed/")


def main() -> int:
    """Writes the snapshot; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clone", nargs="?", type=Path, help="a local clone, with or without a work tree")
    clone = parser.parse_args().clone
    pins = pinned(sorted((ROOT / "requirements").glob("*.txt")))
    with tempfile.TemporaryDirectory() as scratch:
        if clone is None:
            clone = Path(scratch) / "clone"
            print(f"cloning {SOURCE}")
            subprocess.run(["git", "clone", "--quiet", "--depth", "1", SOURCE, str(clone)], check=True)
        made = snapshot(clone, pins)
    SNAPSHOT.write_text(text_of(made))
    known = sum(map(len, made["pins"].values()))
    print(f"{SNAPSHOT.name}: {len(made['pins'])} pins, {known} advisories, from {made['date']} ({made['commit'][:12]})")
    print("read the file's diff, and copy the commit in it to [snapshot] in requirements/reviewed.toml")
    return 0


def snapshot(clone: Path, pins: Mapping[str, set[str]]) -> dict[str, Any]:
    """Builds the snapshot from a clone's newest commit: `source`, `commit`, `date` (UTC day of the commit) and `pins`.

    `pins` maps each `<name>==<version>` to the advisories that affect it, each with `id`, `aliases` and `fix_versions`.

    Raises:
        SystemExit: the clone has no OSV records of the pinned packages.
    """
    commit, date = git(clone, "log", "-1", "--format=%H %cs", "HEAD").split()
    found: dict[str, list[dict[str, Any]]] = {
        f"{name}=={version}": [] for name, versions in sorted(pins.items()) for version in sorted(versions)
    }
    count = 0
    for record in records(clone, pins):
        count += 1
        for name, versions in packages(record):
            for version in sorted(pins.get(name, ())):
                if versions(version):
                    found[f"{name}=={version}"].append(entry(record, name))
    if not count:
        raise SystemExit(f"{clone} has no OSV records of these packages in {' or '.join(FOLDERS)}")
    by_id = {pin: sorted(advisories, key=lambda one: one["id"]) for pin, advisories in found.items()}
    return {"source": origin(clone), "commit": commit, "date": date, "pins": by_id}


def origin(clone: Path) -> str:
    """Returns the URL of the clone's origin if it is public; local paths and internal host names are not disclosed."""
    urls = subprocess.run(
        ["git", "-C", str(clone), "remote", "get-url", "origin"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return urls if urls.startswith("https://github.com/") else "a local clone"


def records(clone: Path, pins: Mapping[str, set[str]]) -> Iterator[dict[str, Any]]:
    """Yields the newest commit's OSV records, except withdrawn ones, that may be about a pinned package."""
    tree = git(clone, "ls-tree", "--name-only", "HEAD").split()
    folders = [folder.split("/")[0] for folder in FOLDERS if folder.split("/")[0] in tree]
    archive = subprocess.run(
        ["git", "-C", str(clone), "archive", "HEAD", *folders], capture_output=True, check=True
    ).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        for member in files:
            parts = member.name.split("/")
            if not member.isfile() or not member.name.startswith(FOLDERS):
                continue
            if parts[0] == "vulns" and normalized(parts[1]) not in pins:
                continue
            file = files.extractfile(member)
            assert file is not None
            text = file.read()
            record = json.loads(text) if member.name.endswith(".json") else yaml.load(text, yaml.CSafeLoader)
            if not record.get("withdrawn"):
                yield record


def packages(record: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yields the PyPI packages in a record, each with a function that tells whether a version is affected."""
    for affected in record.get("affected", ()):
        if affected.get("package", {}).get("ecosystem") == "PyPI":
            yield (
                normalized(affected["package"]["name"]),
                lambda version, affected=affected: is_affected(version, affected),
            )


def is_affected(version: str, affected: Mapping[str, Any]) -> bool:
    """Whether a version is affected (OSV schema, "Evaluation"): it is listed, or is in one of the ranges."""
    if version in affected.get("versions", ()):
        return True
    return any(
        in_range(Version(version), one["events"]) for one in affected.get("ranges", ()) if one["type"] == "ECOSYSTEM"
    )


def in_range(version: Version, events: Iterable[Mapping[str, str]]) -> bool:
    """Whether a version is inside a range, which is defined by its events."""
    inside = False
    for kind, text in sorted(
        ((kind, text) for event in events for kind, text in event.items()), key=lambda one: order(one[1])
    ):
        if kind == "introduced" and version >= order(text):
            inside = True
        if (kind == "fixed" and version >= order(text)) or (kind == "last_affected" and version > order(text)):
            inside = False
    return inside


def order(text: str) -> Version:
    """Parses a version for sorting; `0` and invalid versions sort before all others."""
    try:
        return Version("0.dev0" if text == "0" else text)
    except InvalidVersion:
        return Version("0.dev0")


def entry(record: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Returns the parts of a record that the snapshot keeps: its id, its aliases, and the package's fixed versions."""
    fixed = {
        event["fixed"]
        for affected in record["affected"]
        if normalized(affected.get("package", {}).get("name", "")) == name
        for one in affected.get("ranges", ())
        if one["type"] == "ECOSYSTEM"
        for event in one["events"]
        if "fixed" in event
    }
    return {
        "id": record["id"],
        "aliases": sorted(record.get("aliases") or ()),
        "fix_versions": sorted(fixed, key=order),
    }


def text_of(made: Mapping[str, Any]) -> str:
    """Formats the snapshot as JSON with one line per advisory (or per pin without any), so that diffs are readable."""
    lines = []
    for pin, advisories in made["pins"].items():
        inside = ",\n".join(f"      {json.dumps(one)}" for one in advisories)
        lines.append(f"    {json.dumps(pin)}: " + (f"[\n{inside}\n    ]" if inside else "[]"))
    head = "".join(f"  {json.dumps(name)}: {json.dumps(made[name])},\n" for name in ("source", "commit", "date"))
    return "{\n" + head + '  "pins": {\n' + ",\n".join(lines) + "\n  }\n}\n"


def git(clone: Path, *arguments: str) -> str:
    """Runs git and returns its output."""
    return subprocess.run(["git", "-C", str(clone), *arguments], capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    sys.exit(main())
