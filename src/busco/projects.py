"""Several dbt projects of one lake: what they must agree on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from busco.errors import BuscoError
from busco.lake.deliveries import Contract
from busco.lake.owners import id_lines, refuse_used_name, suggested_id
from busco.project import Project


def all_contracts(projects: Iterable[Project]) -> tuple[Contract, ...]:
    """The contracts of several projects' sources: a bronze table that more than one reads must be said alike.

    Raises:
        BuscoError: two projects say different things of one table, or the lake could not tell them apart.
    """
    found: dict[str, tuple[Contract, str]] = {}
    projects = list(projects)
    _refuse_alike(projects)
    for project in projects:
        for contract in project.contracts:
            known, other = found.setdefault(contract.name, (contract, project.identity))
            if (known.source, known.hash, known.pii) != (contract.source, contract.hash, contract.pii):
                raise BuscoError(
                    f"the dbt projects {other} and {project.identity} say different things of the source "
                    f"{contract.name}",
                    "write source name, columns, types, meta.grain, meta.delivery and each meta.pii alike in both; or, "
                    f"if these are different tables, give one another name in bronze, in its YAML: "
                    f"identifier: {project.name}_{contract.table}",
                )
    return tuple(contract for contract, _ in found.values())


def _refuse_alike(projects: Sequence[Project]) -> None:
    known: set[tuple[str, bool]] = set()
    for project in projects:
        if (mark := (project.identity, bool(project.id))) in known:
            are = f"have the id {project.id}" if project.id else f"are named {project.name}, and have no id"
            other = suggested_id(project.name, {one.identity for one in projects})
            raise BuscoError(
                f"two dbt projects {are}: each would drop what the other publishes",
                f"give one of them an id of its own, in its dbt_project.yml:\n{id_lines(other)}",
            )
        known.add(mark)
    names = {project.identity: project.name for project in projects if project.id}
    for project in projects:
        refuse_used_name(project.owner, names)
