"""Combines a run's versions with the live release into a new release (rules P4 to P7).

A run changes only those parts of the live release that are still the same as in the run's base release. Any other part
was published later than the base release, possibly by newer code. Such parts are kept, and a run that is incompatible
with them is rejected.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from busco.errors import BuscoError
from busco.lake.audits import Audit, refuse_inconsistent, refuse_moved, refuse_untested, version_in
from busco.lake.owners import refuse_claimed, refuse_strange
from busco.lake.records import GOOD, Entry, Published, Release, Result, utc_now
from busco.lake.runs import Run


def compose(
    run: Run,
    audit: Audit,
    who: str,
    docs: str,
    base: Release | None,
    live: Release | None,
    release_id: str,
    take_over: bool = False,
) -> Release:
    """Returns the release that results from publishing a run on top of the live release.

    Args:
        base: the release that the run is based on, or None if the run started from nothing.
        live: the live release, or None if nothing has been published yet.
        docs: the key prefix of the run's docs.
        release_id: the new release's id.
        take_over: publish even if the live project with the same name may be a different one (`busco.lake.owners`).

    Raises:
        Skipped: the run was superseded (P6).
        BuscoError: a table is missing, has changed since the run was pinned, was built from different versions, or is
            not tested (P4, P6; the hint lists the tasks to clear); the run was pinned for another project; or some
            tables belong, or may belong, to another project (the hint suggests how to fix this).
    """
    if run.pin.project not in ("", audit.project):
        raise BuscoError(
            f"the run was pinned for the dbt project {run.pin.project}, but its tables belong to {audit.project}",
            "check that busco_project_id (or BUSCO_PROJECT_ID) is the same here and in the runners' image, then clear "
            "the pin task",
        )
    owner = audit.owner(run.pin.project_dir)
    owned = owner.owned(live, take_over)
    refuse_claimed(owner, audit.tables, live, owned)
    # A model that failed and was then removed from the project leaves an entry that will never be completed.
    entries = {table: entry for table, entry in run.entries().items() if table in audit.tables}
    everything = run.pin.nodes is None
    unfinished = sorted(table for table, entry in entries.items() if entry.version is None)
    if unfinished:
        raise BuscoError(
            f"not built in this run: {', '.join(unfinished)}",
            "clear their tasks; the runners that were writing these tables were replaced or died",
        )
    if everything and (missing := sorted(audit.tables - entries.keys())):
        raise BuscoError(f"not built in this run: {', '.join(missing)}", "clear their tasks")
    built = {t: entry.version for t, entry in entries.items() if entry.version is not None and not entry.kept}
    shown, based = _tables(live), _tables(base)
    refuse_moved(run, audit, base, live, built)

    # Tables that the run kept are not added: they keep the versions that they have in the live release.
    tables = {**shown, **_described(entries, shown, based), **built, **_bronze(run, built, shown, based)}
    dropped: frozenset[str] = frozenset()
    if everything and audit.manifest_hash == run.pin.manifest_hash:
        dropped = _dropped(audit, owned, tables, shown, based)
        tables = {table: version for table, version in tables.items() if table not in dropped}
    if not take_over:
        refuse_strange(owner, audit.models, live, owned, dropped)
    # Tables that were taken over or kept may still have the project's previous identity.
    own = {table for table, version in tables.items() if table in built or version.project in owned}
    tables |= {table: tables[table].model_copy(update={"project": audit.project}) for table in own}
    tables = with_since(tables, shown, release_id)
    refuse_inconsistent(built, tables)
    results = run.latest_results()
    refuse_untested(results, audit, entries, tables)
    tested = dict(live.tested_code) if live else {}
    if everything:
        tested[audit.project] = _passed(audit, results)
    projects = {version.project for version in tables.values()} | {audit.project}
    described = _docs(audit.project, docs, base, live)
    named = {**(live.names if live else {}), **({audit.project: owner.name} if audit.has_id else {})}
    return Release(
        release=release_id,
        previous=live.release if live else None,
        kind="publish",
        environment=run.environment.environment,
        run=run.pin.run,
        epoch=run.pin.epoch,
        tables=tables,
        stale=_stale(tables),
        dropped=tuple(sorted(dropped)),
        built=tuple(sorted(built)),
        docs=docs,
        project=audit.project,
        all_docs={project: prefix for project, prefix in described.items() if project and project in projects},
        names={project: name for project, name in named.items() if project in projects},
        tested_code={project: code for project, code in tested.items() if code and project in projects},
        who=who,
        code_version=run.pin.code_version,
        created_at=utc_now(),
    )


def with_since(tables: Mapping[str, Published], live: Mapping[str, Published], release_id: str) -> dict[str, Published]:
    """Returns a release's tables, each with the release that introduced its version.

    That is the new release, unless the version is already live. A version that a rollback makes live again counts as
    introduced by the rollback, because rule G1 requires that each change of a table's version also changes this id.

    Args:
        tables: the tables of the release `release_id`.
        live: the tables of the release that it replaces.
    """
    return {
        table: version.model_copy(
            update={
                "since": live[table].since if table in live and live[table].version == version.version else release_id
            }
        )
        for table, version in tables.items()
    }


def _tables(release: Release | None) -> dict[str, Published]:
    return release.tables if release else {}


def _described(
    entries: Mapping[str, Entry], shown: Mapping[str, Published], based: Mapping[str, Published]
) -> dict[str, Published]:
    """Returns the live tables whose kept versions have newer descriptions in the run than in the live release.

    Tables that have changed in the live release since the run's base release are not included.
    """
    return {
        table: shown[table].model_copy(update={"metadata": entry.version.metadata})
        for table, entry in entries.items()
        if entry.kept
        and entry.version is not None
        and table in shown
        and table in based
        and shown[table].version == based[table].version == entry.version.version
        and shown[table].metadata == based[table].metadata
    }


def _bronze(
    run: Run, built: Mapping[str, Published], shown: Mapping[str, Published], based: Mapping[str, Published]
) -> dict[str, Published]:
    """Returns the pinned bronze versions that go into the release (P5).

    These are the versions that were read to build a table (`refuse_moved` ensures that no data is lost), and those of
    other bronze tables that have not changed in the live release since the run's base release. A run of a selection
    adds the latter only if the table is not in the live release yet.
    """
    read = {parent for version in built.values() for parent in version.inputs}
    everything = run.pin.nodes is None
    return {
        table: pinned
        for table, pinned in run.pin.bronze.items()
        if table in read
        or (version_in(shown, table) == version_in(based, table) and (everything or table not in shown))
    }


def _dropped(
    audit: Audit,
    owned: Collection[str],
    tables: Mapping[str, Published],
    shown: Mapping[str, Published],
    based: Mapping[str, Published],
) -> frozenset[str]:
    """Returns the live tables that the project's code no longer defines and whose version is the base release's (P7).

    A table that was rebuilt since the base release stays. So does a table that was used to build one of the remaining
    tables, because another run has read it.

    Args:
        owned: the identities whose tables in the live release belong to the project.
    """
    gone = {
        table
        for table, version in shown.items()
        if version.project in owned and table not in audit.tables and version.version == version_in(based, table)
    }
    while needed := gone & {parent for table in tables.keys() - gone for parent in tables[table].inputs}:
        gone -= needed
    return frozenset(gone)


def _docs(project: str, docs: str, base: Release | None, live: Release | None) -> dict[str, str]:
    """Returns each project's docs prefix: `docs` for `project`, unless newer docs for it are already live (P7)."""
    shown = live.docs_by_project() if live else {}
    based = base.docs_by_project() if base else {}
    return shown if shown.get(project) != based.get(project) else {**shown, project: docs}


def _passed(audit: Audit, results: Mapping[str, Result]) -> str:
    """Returns the code with which all of the project's unit tests have passed in this run; '' if there is none (R7)."""
    found = {
        results[unit].tested if unit in results and results[unit].status in GOOD else ""
        for unit in audit.all_unit_tests
    }
    return found.pop() if len(found) == 1 else ""


def _stale(tables: Mapping[str, Published]) -> dict[str, tuple[str, ...]]:
    """Returns the stale tables (P5), each with the inputs that are stale or whose version is not in the release."""
    stale: dict[str, tuple[str, ...]] = {}
    for table, version in tables.items():
        differ = tuple(sorted(p for p, v in version.inputs.items() if p not in tables or tables[p].version != v))
        if differ:
            stale[table] = differ
    changed = True
    while changed:
        changed = False
        for table, version in tables.items():
            stale_inputs = tuple(sorted(p for p in version.inputs if p in stale))
            if stale_inputs and table not in stale:
                stale[table] = stale_inputs
                changed = True
    return stale
