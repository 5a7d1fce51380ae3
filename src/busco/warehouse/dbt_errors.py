"""Suggests fixes for the errors that dbt reports when it can't parse or run a project."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from busco.fixes import package_setting, suggested_alias
from busco.settings import Settings

# the line for one of the two nodes in dbt's message about nodes with the same relation (dbt-core 1.11, exceptions.py,
# AmbiguousAliasError)
_NODE = re.compile(r"^\s*- (model|seed)\.([^.\s]+)\.(\S+) \(([^)]+)\)$", re.MULTILINE)


def advice(settings: Settings, error: str) -> str:
    """Returns what to do about a dbt error; '' if there is nothing to add to dbt's own message."""
    if "with the database representation" in error and (nodes := _NODE.findall(error)):
        return _about_one_table(nodes)
    return _about_packages(settings, error)


def _about_one_table(nodes: list[tuple[str, str, str, str]]) -> str:
    """Returns what to do about two nodes that create the same table. The alias of a package's node is set in
    dbt_project.yml."""
    kind, package, name, path = nodes[-1]
    fqn = [package, *PurePosixPath(path).with_suffix("").parts[1:]]
    setting = package_setting(f"{kind}s", fqn, "alias", suggested_alias(package, name))
    return f"give one of them an alias, in its file or, if it belongs to a package, in dbt_project.yml: {setting}"


def _about_packages(settings: Settings, error: str) -> str:
    """Returns what to do about a dbt error that suggests `dbt deps`; '' for any other error."""
    if "dbt deps" not in error:
        return ""
    install = f"run: {settings.dbt_command('deps')}"
    if "calling a macro" not in error:
        return install
    # dbt can't distinguish a macro of a missing package from a misspelled name
    return f"correct the macro's name; or, if it belongs to a package, add the package to packages.yml, then {install}"
