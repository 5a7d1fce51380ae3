#!/usr/bin/env python3
"""Prints the slowest tests of the last test run, from the JUnit files that scripts/test.sh and test_stack.sh write.

usage: scripts/slowest.py [--number N] [FOLDER...]     defaults: 10, .busco/reports
"""

from __future__ import annotations

import argparse
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path


def main() -> int:
    """Prints the slowest tests; returns the exit status, which is 1 if there is no report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--number", type=int, default=10)
    arguments = parser.parse_args()
    folders = arguments.folders or [Path(__file__).parents[1] / ".busco/reports"]
    files = [file for folder in folders for file in sorted(folder.glob("*.xml"))]
    if not files:
        print(f"no report in {', '.join(map(str, folders))}: run make test first", file=sys.stderr)
        return 1
    tests = [test for file in files for test in slow(file)]
    seconds = sum(time for time, _, _ in tests)
    print(f"the {arguments.number} slowest of {len(tests)} tests ({seconds:.0f} s in total, including setup)")
    for time, suite, name in sorted(tests, reverse=True)[: arguments.number]:
        print(f"{time:7.1f} s  {suite:<12} {name}")
    return 0


def slow(report: Path) -> list[tuple[float, str, str]]:
    """Returns a tuple for each test in a JUnit report: seconds (with setup and teardown), suite name, test name."""
    # trusted input: pytest has just written this file
    cases = ElementTree.parse(report).getroot().iter("testcase")  # noqa: S314
    return [
        (float(case.get("time", 0)), report.stem, f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}")
        for case in cases
    ]


if __name__ == "__main__":
    sys.exit(main())
