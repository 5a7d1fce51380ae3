"""What must hold before a run's versions are the live release, and the refusals where it does not (P4, P6)."""

from __future__ import annotations

from dataclasses import dataclass, field

from busco.errors import BuscoError
from busco.lake.owners import Owner
from busco.lake.records import GOOD, Entry, Release, Result, Version
from busco.lake.runs import Run


class Skipped(Exception):
    """Nothing is published, and nothing is wrong: on hold, superseded, or rolled back since."""


class OnHold(Skipped):
    """Publishing is on hold; `resume` will name the run."""


@dataclass(frozen=True)
class Audit:
    """What the run's project says must be true before a table is shown.

    Attributes:
        tests: each error-severity test's unique id → the tables that it reads.
        tables: every table that the project has now.
        project: the dbt project's identity: its id, or its dbt name where it has none.
        manifest_hash: of the manifest that these were taken from.
        names: test unique id → the Airflow task that runs it, for messages.
        unit_tests: unit test's unique id → the table whose model it tests.
        dbt_name: the dbt project's name; empty is the same as `project`.
        has_id: whether `project` is an id.
        models: the unique ids of all its models and seeds.
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

    def owner(self, folder: str = "") -> Owner:
        """Who the project is, which lies in `folder` below the platform's home."""
        return Owner(self.project, self.dbt_name or self.project, self.has_id, folder)


def refuse_moved(run: Run, audit: Audit, base: Release | None, live: Release | None, built: dict[str, Version]) -> None:
    """P4, first part, and P6: for every table that the run built the live version is the base's; and for those that it
    was built from or tested with, since only a new pin could take up what is live there now."""
    shown = live.tables if live else {}
    based = base.tables if base else {}

    def version_in(tables: dict[str, Version], table: str) -> str | None:
        return tables[table].version if table in tables else None

    watched = {*built, *(parent for version in built.values() for parent in version.inputs)}
    watched |= {table for reads in audit.tests.values() if reads & built.keys() for table in reads}
    moved = sorted(t for t in watched if version_in(shown, t) != version_in(based, t))
    ahead = [t for t in moved if not (t.startswith("bronze.") and version_in(shown, t) == run.pin.bronze[t].version)]
    if not ahead or live is None:
        return
    contained = all(
        set(pinned.deliveries) <= set(shown[table].deliveries if table in shown else ())
        for table, pinned in run.pin.bronze.items()
    )
    same = all(
        t in shown and t not in live.stale and shown[t].fingerprint == version.fingerprint
        for t, version in built.items()
    )
    if contained and same:
        raise Skipped(f"superseded by {live.release}")
    raise BuscoError(
        f"published by another run since this one was pinned: {', '.join(ahead)} (live is {live.release})",
        "clear the pin task: the run begins anew on what is live now",
    )


def refuse_inconsistent(built: dict[str, Version], tables: dict[str, Version]) -> None:
    """P4, second part: each built table was made from exactly the versions that the release will hold."""
    wrong: dict[str, list[str]] = {}
    for table, version in built.items():
        for parent, used in version.inputs.items():
            if parent not in tables or tables[parent].version != used:
                wrong.setdefault(table, []).append(parent)
    if wrong:
        listed = "; ".join(f"{table} (from another {', '.join(sorted(ps))})" for table, ps in sorted(wrong.items()))
        raise BuscoError(
            f"built from versions that this release would not hold: {listed}",
            f"clear {', '.join(sorted(wrong))} with what lies downstream",
        )


def refuse_untested(run: Run, audit: Audit, entries: dict[str, Entry], tables: dict[str, Version]) -> None:
    """P4, third part: every error-severity test of what was built has passed on exactly these versions, and none of the
    sources that it was built from has failed."""
    built = {table for table, entry in entries.items() if not entry.kept}
    sources = {parent for table in built for parent in tables[table].inputs if parent.startswith("bronze.")}
    results: dict[str, Result] = run.latest_results()
    wanting = [
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
            wanting.append(f"{name}: has not run")
        elif result.status not in GOOD:
            wanting.append(f"{name}: {result.status}")
        else:
            other = sorted(t for t in reads if t in tables and result.reads.get(t) != tables[t].version)
            if other:
                wanting.append(f"{name}: passed on other versions of {', '.join(other)}")
    if wanting:
        listed = "\n".join(f"    {line}" for line in wanting)
        raise BuscoError(f"not tested as it would be published:\n{listed}", "clear these tests' tasks")
