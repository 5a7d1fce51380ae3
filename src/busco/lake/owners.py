"""Whose tables are whose: what a dbt project may publish, by its id or, where it has none, by its dbt name.

An id says which project it is. A dbt name does not: two folders may have the same one. So what a project without an id
publishes, or one whose id and dbt name were not published together before, must look like what is live.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from busco.errors import BuscoError
from busco.lake.records import Release, Version
from busco.settings import PROJECT_ID, Settings

# the var of dbt_project.yml that is a project's id
ID_VARIABLE = "busco_project_id"
# how long a suggested one may be before its number
_STEM = 56
# what YAML would not take for a text
_NO_TEXT = re.compile(r"[0-9_-].*|true|false|null|yes|no|on|off|y|n")
_DEFAULT_FOLDER = str(Settings.model_fields["dbt_project_dir"].default)


@dataclass(frozen=True)
class Owner:
    """A dbt project as the lake knows it.

    Attributes:
        identity: its id, or its dbt name where it has none; '' in records of before there were several projects.
        name: its dbt name.
        has_id: whether `identity` is an id.
        folder: where it is below the platform's home, for messages; '' is not known.
    """

    identity: str
    name: str
    has_id: bool = False
    folder: str = ""

    def owned(self, live: Release | None, take_over: bool = False) -> frozenset[str]:
        """The identities whose tables in the live release are this project's: its own and, taken over, that of the
        project without an id that has its dbt name.

        Raises:
            BuscoError: it has no id, and a project that has one uses its name.
        """
        names = live.names if live else {}
        refuse_used_name(self, names)
        taken = {self.name} if take_over and self.has_id and self.name not in names else set()
        return frozenset({self.identity, *taken})

    @property
    def taking_over(self) -> str:
        """The command that publishes it with `--take-over`."""
        chosen = "" if self.folder in ("", _DEFAULT_FOLDER) else f" --project-dir {shlex.quote(self.folder)}"
        return f"busco dbt{chosen} build --publish --take-over"


def refuse_used_name(owner: Owner, names: Mapping[str, str]) -> None:
    """A dbt name stands for a project without an id only while no project with an id uses it.

    Args:
        names: the projects with an id, identity → dbt name.

    Raises:
        BuscoError: one of them has the name of this project, which has no id, as its id or as its dbt name.
    """
    users = sorted(identity for identity, name in names.items() if owner.name in (identity, name))
    if users and not owner.has_id:
        listed = " and ".join(f"the one with the id {identity}" for identity in users)
        other = suggested_id(owner.name, names)
        raise BuscoError(
            f"the dbt project {owner.name} has no id, and its name is used by another: {listed}",
            f"if it is that project, write its id into dbt_project.yml:\n{id_lines(users[0])}\n"
            f"  → if it is another, give it an id of its own:\n{id_lines(other)}",
        )


def refuse_claimed(owner: Owner, tables: Collection[str], live: Release | None, owned: Collection[str]) -> None:
    """Each table of the lake is one dbt project's.

    Args:
        owner: the one that has `tables`.
        owned: the identities whose tables are its own (`Owner.owned`).

    Raises:
        BuscoError: a table of that name in the release is another project's.
    """
    shown = live.tables if live else {}
    claimed = [t for t in sorted(tables) if t in shown and owner.identity and shown[t].project not in ("", *owned)]
    if not claimed:
        return
    listed = ", ".join(f"{table} (of {shown[table].project})" for table in claimed)
    hint = "give the model an alias, or take the table out of the other project and publish that one first"
    if owner.has_id and live is not None and owner.name not in live.names:
        former = [table for table in claimed if shown[table].project == owner.name]
        if former and re.fullmatch(PROJECT_ID, owner.name):
            hint += "\n  → if this project published them before it had an id, its former name keeps them as its id:"
            hint += f"\n{id_lines(owner.name)}"
        if former:
            hint += f"\n  → if it is to have them under the id {owner.identity}: {owner.taking_over}"
    raise BuscoError(
        f"tables of the dbt project {owner.identity} are another project's in the live release: {listed}", hint
    )


def unproven(owner: Owner, live: Release | None, owned: Collection[str]) -> dict[str, Version]:
    """The live tables that a project may have for its own only because of what it publishes, or by `--take-over`: all
    of them, unless its id and dbt name were published together."""
    if live is None:
        return {}
    proven = {owner.identity} if owner.has_id and live.names.get(owner.identity) == owner.name else set()
    return {table: version for table, version in live.tables.items() if version.project in {*owned} - proven}


def refuse_strange(
    owner: Owner, models: Collection[str], live: Release | None, owned: Collection[str], dropped: Collection[str]
) -> None:
    """What is published under a name looks like what is live under it, or it is asked for.

    Args:
        models: the unique ids of the project's models and seeds.
        dropped: the tables that publishing it would drop.

    Raises:
        BuscoError: more than half of the live tables would be dropped, or none of its models made one of them.
    """
    theirs = unproven(owner, live, owned)
    if not theirs or live is None:
        return
    lost = sorted(theirs.keys() & set(dropped))
    known = _own_models(
        (version.unique_id for version in theirs.values()), live.names.get(owner.identity, owner.identity)
    )
    mine = _own_models(models, owner.name)
    if len(lost) * 2 > len(theirs):
        problem = f"publishing it would drop {len(lost)} of these {len(theirs)} tables: {', '.join(lost)}"
    elif known and mine and not known & mine:
        problem = f"none of its models made any of these tables: {', '.join(sorted(theirs))}"
    else:
        return
    other = suggested_id(owner.name, {*live.names, *(version.project for version in live.tables.values())})
    raise BuscoError(
        f"the live release has tables of a dbt project {owner.identity}, and this may be another project: {problem}",
        f"if it is another project, give it an id of its own, in dbt_project.yml:\n{id_lines(other)}\n"
        f"  → if it is the same project, or is to replace it: {owner.taking_over}",
    )


def before(owner: Owner, live: Release | None, release: Release, take_over: bool = False) -> Iterator[str]:
    """What is to be said before `release` replaces `live`: which tables are taken over, and which are dropped."""
    taken = unproven(owner, live, owner.owned(live, take_over)) if take_over else {}
    if taken:
        of = " and ".join(sorted({version.project for version in taken.values()}))
        yield f"taking over the live tables of the dbt project {of}: {', '.join(sorted(taken))}"
    if release.dropped:
        yield f"publishing this drops tables that the dbt project no longer has: {', '.join(release.dropped)}"


def after(owner: Owner, live: Release | None, release: Release, take_over: bool = False) -> Iterator[str]:
    """What is to be said after `release` has replaced `live`: which tables were dropped, and who needs an id now."""
    if release.dropped:
        yield f"dropped by {release.release}: {', '.join(release.dropped)}"
    new = owner.has_id and (live is None or owner.identity not in live.names)
    left = any(version.project == owner.name for version in release.tables.values())
    if new and left and owner.name not in release.names:
        yield (
            f"another dbt project is named {owner.name}, and has no id: it can't be published until it has one, in its "
            f"dbt_project.yml:\n{id_lines(suggested_id(owner.name, release.names))}"
        )
    if take_over and not owner.has_id:
        yield (
            f"write an id into its dbt_project.yml, so that no other project of the name {owner.name} can be taken for "
            f"it:\n{id_lines(suggested_id(owner.name, release.names))}"
        )


def suggested_id(name: str, taken: Collection[str]) -> str:
    """An id that a project of that dbt name may have, which is none of `taken`."""
    stem = re.sub("[^a-z0-9_-]", "-", name.lower())[:_STEM]
    found, number = stem, 1
    while found in taken:
        number += 1
        found = f"{stem}-{number}"
    return found


def id_lines(identity: str) -> str:
    """The lines of dbt_project.yml that give a project its id."""
    value = f'"{identity}"' if _NO_TEXT.fullmatch(identity) else identity
    return f"vars:\n  {ID_VARIABLE}: {value}"


def _own_models(unique_ids: Iterable[str], name: str) -> set[str]:
    """Models and seeds of the project itself, not of its packages, without its name: it may have had another."""
    parts = [unique_id.split(".", 2) for unique_id in unique_ids]
    return {f"{part[0]}.{part[2]}" for part in parts if len(part) == 3 and part[1] == name}
