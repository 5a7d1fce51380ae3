"""Determines the states of tables, for tools. The pages determine them in the browser, where they change with the time
(`app/facts.js`); a test compares the two."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

# Worst first. `ok` means that no problem is known, but that none of the sources has a limit for its age.
STATES = ("failed", "late", "stale", "warned", "held", "ok", "fresh")
_FAILED = frozenset({"failed", "error"})


def states(
    entries: Mapping[str, Mapping[str, Any]],
    published: Mapping[str, Mapping[str, Any]],
    *,
    is_held: bool,
    now: datetime,
) -> dict[str, str]:
    """Returns the state of each table: the worst of `STATES` that holds.

    Args:
        entries: the entries of indexes, by table (docs/catalog.md).
        published: what a release says about its tables, some of which have inputs with newer versions (`stale`).
        is_held: whether publishing is on hold.
        now: the time at which the tables are judged.
    """
    found = {}
    for table, entry in entries.items():
        upstream = [entries[one] for one in _ancestors(entries, table) if one in entries]
        statuses = {test["status"] for test in entry["tests"]}
        holds = {
            "failed": bool(statuses & _FAILED),
            "late": any(_is_late(one, now) for one in (entry, *upstream)),
            "stale": bool((published.get(table) or {}).get("stale")),
            "warned": "warn" in statuses,
            "held": is_held,
            "ok": not any(one["kind"] == "source" and _limits(one) for one in (entry, *upstream)),
            "fresh": True,
        }
        found[table] = next(state for state in STATES if holds[state])
    return found


def _ancestors(entries: Mapping[str, Mapping[str, Any]], table: str) -> set[str]:
    found: set[str] = set()
    queue = [table]
    while queue:
        for parent in (entries.get(queue.pop()) or {"upstream": ()})["upstream"]:
            if parent != table and parent not in found:
                found.add(parent)
                queue.append(parent)
    return found


def _limits(entry: Mapping[str, Any]) -> list[float]:
    """Returns the ages in seconds that the newest rows of a source may have."""
    return [limit for limit in (entry["warn_after"], entry["error_after"]) if limit]


def _is_late(entry: Mapping[str, Any], now: datetime) -> bool:
    limits = _limits(entry) if entry["kind"] == "source" else []
    if not limits or not entry["loaded_at"]:
        return bool(limits)
    age = now - datetime.fromisoformat(entry["loaded_at"])
    return age.total_seconds() > min(limits)
