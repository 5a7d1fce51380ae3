"""Finds where to fix refused nodes so that the fix takes effect: in dbt_project.yml, or in the nodes' own files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from busco.problems import SHOWN, Problem, some
from busco.project import LAYERS, Project

# resource type → the section of dbt_project.yml that configures nodes of that type
_SECTIONS = {
    "model": "models",
    "seed": "seeds",
    "snapshot": "snapshots",
    "source": "sources",
    "test": "data_tests",
    "unit_test": "unit_tests",
}
_CONFIG_CALL = re.compile(r"\bconfig\s*\(")
# setting → the value that fixes the problem (_VALUES), and how that value is written in a model's own file (_WRITTEN)
_VALUES = {"materialized": "lake", "schema": LAYERS[-1]}
_WRITTEN = {"materialized": "materialized='lake'", "schema": " or ".join(f"schema='{layer}'" for layer in LAYERS)}
_Settings = dict[str, Any]


def fixes(project: Project, problems: Sequence[Problem], project_file: Mapping[str, Any]) -> Iterator[str]:
    """Yields advice on what to write, and where, for problems that a setting can fix and for those in packages.

    A config in the SQL or YAML of one of the project's own models overrides dbt_project.yml, which in turn overrides
    everything in a package's files (dbt-core 1.11, context/context_config.py). Nobody can change a package's files, so
    a node of a package has to be disabled if no setting in dbt_project.yml can fix it.

    Args:
        project_file: the content of the project's dbt_project.yml.
    """
    own_names = ("", project.name)
    disabled = {_path(one.node): one for one in problems if one.package not in own_names and not one.setting}
    at_once: dict[str, _Settings] = {}
    own: dict[str, list[str]] = {}
    aliases = []
    for one in problems:
        if _path(one.node) in disabled:
            continue
        if one.setting == "alias" and one.package not in own_names:
            aliases.append(one)
        if one.setting not in _VALUES:
            continue
        section, fqn = _SECTIONS[one.node["resource_type"]], _path(one.node)
        place, configured = _configured(project_file.get(section), fqn, one.setting)
        if one.package in own_names and (file := _own_config(one.node, one.setting, configured)):
            own.setdefault(one.setting, []).append(file)
        else:
            _put(at_once.setdefault(section, {}), place, one.setting, _VALUES[one.setting])
    for section, settings in at_once.items():
        yield _at_once(section, settings)
    for setting, files in own.items():
        number = len(files)
        have = "have their own configs, which override" if number > 1 else "has its own config, which overrides"
        yield (
            f"{number:,} model{'s' if number > 1 else ''} ({some(files)}) {have} dbt_project.yml: "
            f"write {_WRITTEN[setting]} in {'those configs' if number > 1 else 'that config'}"
        )
    yield from _of_packages("set the nodes' aliases", aliases, "alias")
    yield from _of_packages("disable the refused nodes", list(disabled.values()), "enabled")


def suggested_alias(package: str, name: str) -> str:
    """Returns an alias for a package's model: a table name that no model of the project is likely to have."""
    return re.sub(r"[^a-z0-9_]", "_", f"{package}_{name}".lower())


def package_setting(section: str, fqn: Sequence[str], setting: str, value: str) -> str:
    """Returns the line of dbt_project.yml that sets a value for one node."""
    settings: _Settings = {}
    _put(settings, fqn, setting, value)
    return f"{section}: {_flow(settings)}"


def _path(node: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns a node's fully qualified name; for macros and functions, which have none, the package and the name."""
    return tuple(node.get("fqn") or (node.get("package_name") or "", node.get("name") or ""))


def _of_packages(what: str, problems: Sequence[Problem], setting: str) -> Iterator[str]:
    """Yields advice on nodes of packages, with the lines of dbt_project.yml that fix the first few of them."""
    lines = []
    for one in problems:
        if section := _SECTIONS.get(one.node.get("resource_type", "")):
            value = suggested_alias(one.package, one.node["name"]) if setting == "alias" else "false"
            lines.append(package_setting(section, _path(one.node), setting, value))
    packages = sorted({one.package for one in problems})
    advice = f"package files can't be edited ({some(packages)}); in dbt_project.yml, {what}"
    if lines:
        shown = sorted(lines)[:SHOWN]
        more = [f"… ({len(lines):,} in total)"] if len(lines) > SHOWN else []
        yield f"{advice}: {shown[0]}" if len(lines) == 1 else "\n        ".join([f"{advice}:", *shown, *more])
    elif problems:
        yield f"package files can't be edited: remove {some(packages)} from packages.yml, or use a different version"


def _put(settings: _Settings, place: Sequence[str], setting: str, value: str) -> None:
    for name in place:
        settings = settings.setdefault(name, {})
    settings[f"+{setting}"] = value


def _at_once(section: str, settings: Mapping[str, Any]) -> str:
    """Returns advice to put `settings` into a section of dbt_project.yml, with a line for each package if `settings`
    names several."""
    where = f"for all {section} at once, in dbt_project.yml"
    other = f" (or +schema: {' or '.join(LAYERS[:-1])})" if "+schema" in _flow(settings) else ""
    if len(settings) == 1:
        return f"{where}: {section}: {_flow(settings)}{other}"
    lines = (f"{name}: {_flow(one)}" for name, one in settings.items())
    return "\n        ".join([f"{where}, under {section}:{other}", *lines])


def _flow(settings: Any) -> str:
    """Returns settings as one line of YAML."""
    if not isinstance(settings, Mapping):
        return str(settings)
    return "{" + ", ".join(f"{name}: {_flow(one)}" for name, one in settings.items()) + "}"


def _configured(settings: Any, fqn: Sequence[str], key: str) -> tuple[Sequence[str], Any]:
    """Returns where dbt_project.yml sets a node's `key`, as a prefix of the node's fully qualified name, and the value.

    If the key is set at several levels, the deepest level takes precedence. If it is not set, returns the node's
    package and None.

    Args:
        settings: the content of the section.
    """
    place, found = fqn[:1], None
    for depth in range(len(fqn) + 1):
        if not isinstance(settings, Mapping):
            break
        for name in (key, f"+{key}"):
            # a mapping here is not a value, but the settings of a folder that has the same name as the key
            if isinstance(settings.get(name), str):
                place, found = fqn[:depth], settings[name]
        settings = settings.get(fqn[depth]) if depth < len(fqn) else None
    return place, found


def _own_config(node: Mapping[str, Any], setting: str, configured: Any) -> str:
    """Returns the file in which a model of the project configures the setting itself, or '' if it doesn't.

    Args:
        configured: the value in dbt_project.yml, or None.
    """
    written = re.compile(rf"\b{setting}\b['\"]?\s*[=:]")
    if any(written.search(call) for call in _config_calls(node.get("raw_code") or "")):
        return Problem(node, "").file
    if configured is None:
        return yaml_file(node) if node["config"].get(setting) else ""
    is_overridden = configured == "lake" if setting == "materialized" else configured in LAYERS
    return (yaml_file(node) or Problem(node, "").file) if is_overridden else ""


def _config_calls(code: str) -> Iterator[str]:
    """Yields the text between the parentheses of each `config(…)` in a model's code."""
    for call in _CONFIG_CALL.finditer(code):
        end, depth = call.end(), 1
        while depth and end < len(code):
            depth += {"(": 1, ")": -1}.get(code[end], 0)
            end += 1
        yield code[call.end() : end]


def yaml_file(node: Mapping[str, Any]) -> str:
    """Returns the YAML file that describes a node, or '' if there is none."""
    return (node.get("patch_path") or "").split("://")[-1]
