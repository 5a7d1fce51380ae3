"""Removes from a selection the nodes that dbt can't build or test."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from busco.project import Project


def built(project: Project, found: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns the selection without the nodes that dbt lists but never builds (`is_ignored`), and a note that lists
    them."""
    known = {*project.nodes, *project.unit_tests}
    left_out = sorted(node for node in found if node not in known)
    empty = "the file is empty" if len(left_out) == 1 else "the files are empty"
    notes = [f"left out, because {empty}: {', '.join(left_out)}"] if left_out else []
    return [node for node in found if node in known], notes


def testable(project: Project, found: Sequence[str], have_built: Collection[str]) -> tuple[list[str], list[str]]:
    """Returns the selection without the tests that read a table that was never built, and a note that lists them."""
    have = {table for node in (*found, *project.sources) if (table := project.table_of(node))} | set(have_built)
    missing = {node: lacking for node in found if node in project.tests and (lacking := project.parents(node) - have)}
    notes = []
    if missing:
        names = sorted(str(project.node(node)["name"]) for node in missing)
        tables = sorted(frozenset[str]().union(*missing.values()))
        were = "was" if len(tables) == 1 else "were"
        notes.append(f"left out, because {', '.join(tables)} {were} never built: {', '.join(names)}")
    return [node for node in found if node not in missing], notes
