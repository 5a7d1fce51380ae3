"""The release that a run and the live release make together (rules P4 to P7).

A run changes only what is live as its base has it. Whatever differs from the base was published since, by code that may
be newer; it stays, and the run either gets along with it or is refused.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from busco.errors import BuscoError
from busco.lake.audits import Audit, refuse_inconsistent, refuse_moved, refuse_untested
from busco.lake.owners import refuse_claimed, refuse_strange
from busco.lake.records import Release, Version, utc_now
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
    """The release that publishing a run on the live release would make.

    Args:
        base: the release that the run is based on, None for the empty one.
        live: None where nothing was ever published.
        docs: prefix of the run's docs.
        release_id: the new release's id.
        take_over: publish also what may be another project than the live one of its name (`busco.lake.owners`).

    Raises:
        Skipped: superseded (P6).
        BuscoError: a table is missing, moved since the run's pin, was built from other versions, or is not tested (P4,
            P6), with the tasks to clear; the run was pinned for another project; or tables are another project's, or
            may be, with the ways out.
    """
    if run.pin.project not in ("", audit.project):
        raise BuscoError(
            f"the run was pinned for the dbt project {run.pin.project}, and what it built is of {audit.project}",
            "clear the pin task; is busco_project_id, or BUSCO_PROJECT_ID, the same in the runners' image and here?",
        )
    owner = audit.owner(run.pin.project_dir)
    owned = owner.owned(live, take_over)
    refuse_claimed(owner, audit.tables, live, owned)
    # a model that failed and was taken out of the project leaves an entry that nobody can finish
    entries = {table: entry for table, entry in run.entries().items() if table in audit.tables}
    everything = run.pin.nodes is None
    unfinished = sorted(table for table, entry in entries.items() if entry.version is None)
    if unfinished:
        raise BuscoError(
            f"not built in this run: {', '.join(unfinished)}",
            "clear their tasks: a writer was taken away or died",
        )
    if everything and (missing := sorted(audit.tables - entries.keys())):
        raise BuscoError(f"not built in this run: {', '.join(missing)}", "clear their tasks")
    built = {t: entry.version for t, entry in entries.items() if entry.version is not None and not entry.kept}
    shown, based = _tables(live), _tables(base)
    refuse_moved(run, audit, base, live, built)

    # what the run kept is not among them: it is the base's, and follows what is live now
    tables = {**shown, **built, **_bronze(run, built, shown, based)}
    dropped: frozenset[str] = frozenset()
    if everything and audit.manifest_hash == run.pin.manifest_hash:
        dropped = _dropped(audit, owned, tables, shown, based)
        tables = {table: version for table, version in tables.items() if table not in dropped}
    if not take_over:
        refuse_strange(owner, audit.models, live, owned, dropped)
    # a table that was taken over, or is kept, has the identity of before
    own = {table for table, version in tables.items() if table in built or version.project in owned}
    tables |= {table: tables[table].model_copy(update={"project": audit.project}) for table in own}
    refuse_inconsistent(built, tables)
    refuse_untested(run, audit, entries, tables)
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
        who=who,
        code_version=run.pin.code_version,
        created_at=utc_now(),
    )


def _tables(release: Release | None) -> dict[str, Version]:
    return release.tables if release else {}


def _bronze(
    run: Run, built: Mapping[str, Version], shown: Mapping[str, Version], based: Mapping[str, Version]
) -> dict[str, Version]:
    """The pinned bronze sets that the release takes over (P5): those that something was built from, of which
    `refuse_moved` has seen to it that nothing is lost; and of others those that nobody has moved since the pin."""
    read = {parent for version in built.values() for parent in version.inputs}
    everything = run.pin.nodes is None
    return {
        table: pinned
        for table, pinned in run.pin.bronze.items()
        if table in read or (shown.get(table) == based.get(table) and (everything or table not in shown))
    }


def _dropped(
    audit: Audit,
    owned: Collection[str],
    tables: Mapping[str, Version],
    shown: Mapping[str, Version],
    based: Mapping[str, Version],
) -> frozenset[str]:
    """The tables of the run's project that its code no longer has, as its base had them (P7).

    `owned` are the identities under which they are in the live release.

    One that was built again since stays, and so does one that a table which stays was made from, since another run has
    read it.
    """
    gone = {
        table
        for table, version in shown.items()
        if version.project in owned and table not in audit.tables and version == based.get(table)
    }
    while needed := gone & {parent for table in tables.keys() - gone for parent in tables[table].inputs}:
        gone -= needed
    return frozenset(gone)


def _docs(project: str, docs: str, base: Release | None, live: Release | None) -> dict[str, str]:
    """The docs of each project. Those of the run's own are replaced only if they are still the base's (P7)."""
    shown = live.docs_by_project() if live else {}
    based = base.docs_by_project() if base else {}
    return shown if shown.get(project) != based.get(project) else {**shown, project: docs}


def _stale(tables: Mapping[str, Version]) -> dict[str, tuple[str, ...]]:
    """Tables whose inputs differ from what the release holds, and which (P5); what lies behind them too."""
    stale: dict[str, tuple[str, ...]] = {}
    for table, version in tables.items():
        differ = tuple(sorted(p for p, v in version.inputs.items() if p not in tables or tables[p].version != v))
        if differ:
            stale[table] = differ
    changed = True
    while changed:
        changed = False
        for table, version in tables.items():
            behind = tuple(sorted(p for p in version.inputs if p in stale))
            if behind and table not in stale:
                stale[table] = behind
                changed = True
    return stale
