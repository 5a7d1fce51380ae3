"""Checks that dbt projects on one lake have different ids, and that they declare shared sources identically."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from busco.errors import BuscoError
from busco.lake.deliveries import Contract
from busco.lake.owners import id_lines, refuse_used_name, suggested_id
from busco.project import Project


def all_contracts(projects: Iterable[Project]) -> tuple[Contract, ...]:
    """Returns the contracts of several projects' sources. Projects that read the same bronze table must declare it
    identically.

    Raises:
        BuscoError: two projects declare a table differently, or the lake could not tell two projects apart.
    """
    found: dict[str, tuple[Contract, str]] = {}
    projects = list(projects)
    _refuse_alike(projects)
    for project in projects:
        for contract in project.contracts:
            known, other = found.setdefault(contract.name, (contract, project.identity))
            if (known.source, known.hash, known.pii) != (contract.source, contract.hash, contract.pii):
                raise BuscoError(
                    f"the dbt projects {other} and {project.identity} declare the source {contract.name} differently",
                    "make the source name, columns, types, meta.grain, meta.delivery and each meta.pii the same in "
                    "both; or, if these are different tables, give one of them another name in bronze, in its YAML: "
                    f"identifier: {project.name}_{contract.table}",
                )
    return tuple(contract for contract, _ in found.values())


def _refuse_alike(projects: Sequence[Project]) -> None:
    known: set[tuple[str, bool]] = set()
    for project in projects:
        if (mark := (project.identity, bool(project.id))) in known:
            are = f"have the id {project.id}" if project.id else f"are named {project.name} and have no id"
            other = suggested_id(project.name, {one.identity for one in projects})
            raise BuscoError(
                f"two dbt projects {are}: each would drop the tables that the other publishes",
                f"give one of them a different id in its dbt_project.yml:\n{id_lines(other)}",
            )
        known.add(mark)
    names = {project.identity: project.name for project in projects if project.id}
    for project in projects:
        refuse_used_name(project.owner, names)
