"""Checks that a run must pass before its versions become the live release (rules P4 and P6)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from busco.errors import BuscoError
from busco.lake.contents import contains
from busco.lake.owners import Owner
from busco.lake.records import GOOD, Entry, Published, Release, Result
from busco.lake.runs import Run


class Skipped(Exception):
    """Nothing is published, but nothing is wrong: publishing is on hold, or the run was superseded or rolled back."""


class OnHold(Skipped):
    """Publishing is on hold; `resume` will list this run."""


@dataclass(frozen=True)
class Audit:
    """What the run's dbt project requires before its tables can be published.

    Attributes:
        tests: unique id of each error-severity test → the tables that it reads.
        tables: every table that the project currently defines.
        project: the dbt project's identity: its id, or its dbt name if it has no id.
        manifest_hash: the hash of the dbt manifest that the audit was derived from.
        names: unique id of each test → the Airflow task that runs the test, for messages.
        unit_tests: unique id of each unit test → the table whose model is tested.
        dbt_name: the project's dbt name; if empty, it is the same as `project`.
        has_id: whether `project` is an id.
        models: the unique ids of all of the project's models and seeds.
        all_unit_tests: the unique ids of all of the project's unit tests, also those of views.
    """

    tests: dict[str, frozenset[str]]
    tables: frozenset[str]
    project: str
    manifest_hash: str
    names: dict[str, str] = field(default_factory=dict)
    unit_tests: dict[str, str] = field(default_factory=dict)
    dbt_name: str = ""
    has_id: bool = False
    models: frozenset[str] = frozenset()
    all_unit_tests: frozenset[str] = frozenset()

    def owner(self, folder: str = "") -> Owner:
        """Returns the project as an owner; `folder` is the project's path relative to the platform's home directory."""
        return Owner(self.project, self.dbt_name or self.project, self.has_id, folder)


def version_in(tables: Mapping[str, Published], table: str) -> str | None:
    """Returns the id of a table's version in a release's tables, or None if the release does not have the table."""
    return tables[table].version if table in tables else None


def refuse_moved(
    run: Run, audit: Audit, base: Release | None, live: Release | None, built: dict[str, Published]
) -> None:
    """Rejects a run if the live version of a table that it depends on is not the base release's (P4 part 1, P6).

    A run depends on the tables that it built, on their inputs, and on the tables that their tests read. Only a new pin
    can pick up the versions of these tables that are live now.
    """
    shown = live.tables if live else {}
    based = base.tables if base else {}
    watched = {*built, *(parent for version in built.values() for parent in version.inputs)}
    watched |= {table for reads in audit.tests.values() if reads & built.keys() for table in reads}
    moved = sorted(t for t in watched if version_in(shown, t) != version_in(based, t))
    ahead = [t for t in moved if not (t.startswith("bronze.") and version_in(shown, t) == run.pin.bronze[t].version)]
    if not ahead or live is None:
        return
    contained = all(contains(run.store, shown.get(table), pinned) for table, pinned in run.pin.bronze.items())
    same = all(
        t in shown and t not in live.stale and shown[t].fingerprint == version.fingerprint
        for t, version in built.items()
    )
    if contained and same:
        raise Skipped(f"superseded by {live.release}")
    raise BuscoError(
        f"published by another run since this run was pinned: {', '.join(ahead)} (live release: {live.release})",
        "clear the pin task; the run then starts over from the live release",
    )


def refuse_inconsistent(built: dict[str, Published], tables: dict[str, Published]) -> None:
    """Rejects built tables whose inputs are not exactly the versions in the new release (P4 part 2)."""
    wrong: dict[str, list[str]] = {}
    for table, version in built.items():
        for parent, used in version.inputs.items():
            if parent not in tables or tables[parent].version != used:
                wrong.setdefault(table, []).append(parent)
    if wrong:
        listed = "; ".join(
            f"{table} (from a different version of {', '.join(sorted(parents))})"
            for table, parents in sorted(wrong.items())
        )
        raise BuscoError(
            f"built from versions that would not be in this release: {listed}",
            f"clear {', '.join(sorted(wrong))} with Downstream",
        )


def refuse_untested(
    results: Mapping[str, Result], audit: Audit, entries: dict[str, Entry], tables: dict[str, Published]
) -> None:
    """Rejects a run whose tests have not all passed on exactly the versions to be published (P4 part 3).

    Every unit test and error-severity test of the tables that the run built must have passed, and no test of the
    sources that these tables were built from may have failed.

    Args:
        results: the latest result of each node in the run.
    """
    built = {table for table, entry in entries.items() if not entry.kept}
    sources = {parent for table in built for parent in tables[table].inputs if parent.startswith("bronze.")}
    problems = [
        f"{audit.names.get(unit, unit)}: {'has not run' if unit not in results else results[unit].status}"
        for unit, table in sorted(audit.unit_tests.items())
        if table in built and (unit not in results or results[unit].status not in GOOD)
    ]
    for test, reads in sorted(audit.tests.items()):
        result = results.get(test)
        if not reads & built and not (reads <= sources and result is not None and result.status not in GOOD):
            continue
        name = audit.names.get(test, test)
        if result is None:
            problems.append(f"{name}: has not run")
        elif result.status not in GOOD:
            problems.append(f"{name}: {result.status}")
        else:
            other = sorted(t for t in reads if t in tables and result.reads.get(t) != tables[t].version)
            if other:
                problems.append(f"{name}: passed on different versions of {', '.join(other)}")
    if problems:
        listed = "\n".join(f"    {line}" for line in problems)
        raise BuscoError(
            f"these tests have not passed on the versions to be published:\n{listed}", "clear the tasks of these tests"
        )
