"""Decides which tables a dbt project may publish, based on its id or, if it has none, its dbt name.

An id identifies a project. A dbt name does not, because projects in two folders can have the same name. So if a project
has no id, or its id and dbt name have not been published together before, what it publishes must resemble what is live.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from busco.errors import BuscoError
from busco.lake.records import Published, Release
from busco.settings import PROJECT_ID, Settings

# The var in dbt_project.yml that contains a project's id.
ID_VARIABLE = "busco_project_id"
# The maximum length of a suggested id, before its number.
_STEM = 56
# Values that YAML would not parse as a string.
_NO_TEXT = re.compile(r"[0-9_-].*|true|false|null|yes|no|on|off|y|n")
_DEFAULT_FOLDER = str(Settings.model_fields["dbt_project_dir"].default)


@dataclass(frozen=True)
class Owner:
    """A dbt project as the owner of tables in the lake.

    Attributes:
        identity: its id, or its dbt name if it has no id; '' in records that predate support for several projects.
        name: its dbt name.
        has_id: whether `identity` is an id.
        folder: its path relative to the platform's home directory, for messages; '' if it is unknown.
    """

    identity: str
    name: str
    has_id: bool = False
    folder: str = ""

    def owned(self, live: Release | None, take_over: bool = False) -> frozenset[str]:
        """Returns the identities whose tables in the live release belong to this project.

        These are its own identity and, with `take_over`, the identity of the project without an id that has the same
        dbt name.

        Raises:
            BuscoError: it has no id, and a project with an id uses its name.
        """
        names = live.names if live else {}
        refuse_used_name(self, names)
        taken = {self.name} if take_over and self.has_id and self.name not in names else set()
        return frozenset({self.identity, *taken})

    @property
    def taking_over(self) -> str:
        """The command that publishes this project with `--take-over`."""
        chosen = "" if self.folder in ("", _DEFAULT_FOLDER) else f" --project-dir {shlex.quote(self.folder)}"
        return f"busco dbt{chosen} build --publish --take-over"


def refuse_used_name(owner: Owner, names: Mapping[str, str]) -> None:
    """Rejects a project without an id if a project with an id uses its name.

    Args:
        names: the projects with an id: identity → dbt name.

    Raises:
        BuscoError: this project has no id, and its name is the id or the dbt name of one of those projects.
    """
    users = sorted(identity for identity, name in names.items() if owner.name in (identity, name))
    if users and not owner.has_id:
        listed = " and ".join(f"the project with the id {identity}" for identity in users)
        other = suggested_id(owner.name, names)
        raise BuscoError(
            f"the dbt project {owner.name} has no id, and its name is already used by {listed}",
            f"if they are the same project, add this id to dbt_project.yml:\n{id_lines(users[0])}\n"
            f"  → if they are different projects, give this one its own id:\n{id_lines(other)}",
        )


def refuse_claimed(owner: Owner, tables: Collection[str], live: Release | None, owned: Collection[str]) -> None:
    """Rejects tables that belong to another project: each table in the lake belongs to exactly one project.

    Args:
        owner: the project that defines `tables`.
        owned: the identities whose tables belong to it (`Owner.owned`).

    Raises:
        BuscoError: a table with one of these names belongs to another project in the live release.
    """
    shown = live.tables if live else {}
    claimed = [t for t in sorted(tables) if t in shown and owner.identity and shown[t].project not in ("", *owned)]
    if not claimed:
        return
    listed = ", ".join(f"{table} (owned by {shown[table].project})" for table in claimed)
    hint = "give the model an alias, or remove the table from the other project and publish that project first"
    if owner.has_id and live is not None and owner.name not in live.names:
        former = [table for table in claimed if shown[table].project == owner.name]
        if former and re.fullmatch(PROJECT_ID, owner.name):
            hint += "\n  → if this project published them before it had an id, use its dbt name as its id to keep them:"
            hint += f"\n{id_lines(owner.name)}"
        if former:
            hint += f"\n  → to move them to the id {owner.identity}, run: {owner.taking_over}"
    raise BuscoError(
        f"the dbt project {owner.identity} defines tables that belong to another project in the live release: {listed}",
        hint,
    )


def unproven(owner: Owner, live: Release | None, owned: Collection[str]) -> dict[str, Published]:
    """Returns the live tables under the project's name that are not proven to be this project's own.

    These are all of its tables, unless the project's id and dbt name have been published together. The project may
    replace them only if what it publishes resembles them, or with `--take-over`.
    """
    if live is None:
        return {}
    proven = {owner.identity} if owner.has_id and live.names.get(owner.identity) == owner.name else set()
    return {table: version for table, version in live.tables.items() if version.project in {*owned} - proven}


def refuse_strange(
    owner: Owner, models: Collection[str], live: Release | None, owned: Collection[str], dropped: Collection[str]
) -> None:
    """Rejects a project that does not resemble the live project of the same name. Not called with `--take-over`.

    Args:
        models: the unique ids of the project's models and seeds.
        dropped: the tables that publishing would drop.

    Raises:
        BuscoError: more than half of the live project's tables would be dropped, or none of them was built by one of
            this project's models.
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
        problem = f"publishing would drop {len(lost)} of these {len(theirs)} tables: {', '.join(lost)}"
    elif known and mine and not known & mine:
        problem = f"none of its models built any of these tables: {', '.join(sorted(theirs))}"
    else:
        return
    other = suggested_id(owner.name, {*live.names, *(version.project for version in live.tables.values())})
    raise BuscoError(
        f"the live release has tables of a dbt project {owner.identity}, but this may be another project: {problem}",
        f"if it is a different project, give it its own id in dbt_project.yml:\n{id_lines(other)}\n"
        f"  → if it is the same project, or is meant to replace it, run: {owner.taking_over}",
    )


def before(owner: Owner, live: Release | None, release: Release, take_over: bool = False) -> Iterator[str]:
    """Yields messages to show before `release` replaces `live`: which tables are taken over, and which are dropped."""
    taken = unproven(owner, live, owner.owned(live, take_over)) if take_over else {}
    if taken:
        of = " and ".join(sorted({version.project for version in taken.values()}))
        yield f"taking over the live tables of the dbt project {of}: {', '.join(sorted(taken))}"
    if release.dropped:
        yield f"publishing drops tables that the dbt project no longer defines: {', '.join(release.dropped)}"


def after(owner: Owner, live: Release | None, release: Release, take_over: bool = False) -> Iterator[str]:
    """Yields messages to show after `release` has replaced `live`: dropped tables, and projects that now need an id."""
    if release.dropped:
        yield f"dropped by {release.release}: {', '.join(release.dropped)}"
    new = owner.has_id and (live is None or owner.identity not in live.names)
    left = any(version.project == owner.name for version in release.tables.values())
    if new and left and owner.name not in release.names:
        yield (
            f"another dbt project is also named {owner.name}, but has no id; it can't be published until its "
            f"dbt_project.yml has one:\n{id_lines(suggested_id(owner.name, release.names))}"
        )
    if take_over and not owner.has_id:
        yield (
            f"add an id to this project's dbt_project.yml, so that no other project named {owner.name} can be mistaken "
            f"for it:\n{id_lines(suggested_id(owner.name, release.names))}"
        )


def suggested_id(name: str, taken: Collection[str]) -> str:
    """Suggests an id for a project with this dbt name that is not in `taken`."""
    stem = re.sub("[^a-z0-9_-]", "-", name.lower())[:_STEM]
    found, number = stem, 1
    while found in taken:
        number += 1
        found = f"{stem}-{number}"
    return found


def id_lines(identity: str) -> str:
    """Returns the lines that set a project's id in dbt_project.yml, with a comment for files that already have vars."""
    value = f'"{identity}"' if _NO_TEXT.fullmatch(identity) else identity
    return f"vars:  # if dbt_project.yml already has vars, set the id there\n  {ID_VARIABLE}: {value}"


def _own_models(unique_ids: Iterable[str], name: str) -> set[str]:
    """Returns the ids of the project's own models and seeds, not of those in its packages.

    The project's name is removed from the ids because it can change.
    """
    parts = [unique_id.split(".", 2) for unique_id in unique_ids]
    return {f"{part[0]}.{part[2]}" for part in parts if len(part) == 3 and part[1] == name}
