"""Several dbt projects of one lake: what they must agree on."""

from __future__ import annotations

from collections.abc import Iterable

from busco.errors import BuscoError
from busco.lake.deliveries import Contract
from busco.project import Project


def all_contracts(projects: Iterable[Project]) -> tuple[Contract, ...]:
    """The contracts of several projects' sources: a bronze table that more than one reads must be said alike.

    Raises:
        BuscoError: two projects say different things of one table, or have one name.
    """
    found: dict[str, tuple[Contract, str]] = {}
    names: set[str] = set()
    for project in projects:
        if project.name in names:
            raise BuscoError(
                f"two dbt projects are named {project.name}: each would drop what the other publishes",
                "give one of them another name, in dbt_project.yml",
            )
        names.add(project.name)
        for contract in project.contracts:
            known, other = found.setdefault(contract.name, (contract, project.name))
            if (known.source, known.hash, known.pii) != (contract.source, contract.hash, contract.pii):
                raise BuscoError(
                    f"the dbt projects {other} and {project.name} say different things of the source {contract.name}",
                    "write source name, columns, types, meta.grain, meta.delivery and each meta.pii alike in both",
                )
    return tuple(contract for contract, _ in found.values())
