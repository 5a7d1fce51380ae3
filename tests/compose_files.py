"""Reads Compose files with `extends` resolved, as `docker compose config` does, but without Docker."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
# lists that Compose appends to each other (Compose file reference, "Merge"); others replace each other
APPENDED = frozenset({"volumes", "ports", "tmpfs", "security_opt", "cap_drop", "group_add", "networks"})


class _Loader(yaml.SafeLoader):
    """Reads a mapping with Compose's tag !override like one without."""


_Loader.add_constructor("!override", lambda loader, node: loader.construct_mapping(node, deep=True))  # type: ignore[no-untyped-call]


def load(name: str) -> dict[str, Any]:
    """Returns a Compose file of the repository, as it is written."""
    return dict(yaml.load((ROOT / name).read_text(), _Loader))


def services(*names: str) -> dict[str, dict[str, Any]]:
    """Returns the services of a file, or of a file and its overrides, with `extends` resolved."""
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        for service, given in load(name)["services"].items():
            found[service] = merged(found.get(service, {}), _extended(given))
    return found


def _extended(given: Mapping[str, Any]) -> dict[str, Any]:
    own = {key: value for key, value in given.items() if key != "extends"}
    if "extends" not in given:
        return own
    base = load(given["extends"]["file"])["services"][given["extends"]["service"]]
    return merged(base, own)


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        before = result.get(key)
        if isinstance(before, dict) and isinstance(value, dict):
            result[key] = merged(before, value)
        elif isinstance(before, list) and isinstance(value, list) and key in APPENDED:
            result[key] = [*before, *(one for one in value if one not in before)]
        else:
            result[key] = value
    return result
