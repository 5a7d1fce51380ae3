"""Removes the nodes that dbt can't build or test from the nodes that a selection matches."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from busco.project import Project


def built(project: Project, found: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns the selection without the nodes that dbt lists but never builds (`is_ignored`), and a note that lists
    them."""
    known = {*project.nodes, *project.unit_tests}
    left_out = sorted(node for node in found if node not in known)
    notes = [f"left out, because the file is empty: {', '.join(left_out)}"] if left_out else []
    return [node for node in found if node in known], notes


def testable(project: Project, found: Sequence[str], have_built: Collection[str]) -> tuple[list[str], list[str]]:
    """Returns the selection without the tests that read a table which was never built, and a note that lists them."""
    have = {table for node in (*found, *project.sources) if (table := project.table_of(node))} | set(have_built)
    missing = {node: lacking for node in found if node in project.tests and (lacking := project.parents(node) - have)}
    notes = []
    if missing:
        names = sorted(str(project.node(node)["name"]) for node in missing)
        tables = ", ".join(sorted(frozenset().union(*missing.values())))
        notes.append(f"left out, because {tables} was never built: {', '.join(names)}")
    return [node for node in found if node not in missing], notes
