"""Assigns each node of a dbt project a name in Airflow and a key in a run's records, and writes the manifest that
Cosmos renders.

dbt accepts names that Airflow rejects (`orders_&_items(total)`, 240 characters). Cosmos maps different names to the
same one (`orders.v1` and `orders_v1`), and replaces long ones with numbers. So each node gets its name here, before
Cosmos sees it. A node's name can also equal the key of another node's tests (`orders.test`), so each node gets its key
here, too.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from busco.lake.records import DOCS_NODE
from busco.project import Project

# the name and the key of the task that runs all tests that read only sources
SOURCES_TASK = "sources_test"
SOURCES_KEY = "sources.test"
MAX_NAME = 180
"""The maximum length in characters. Airflow allows 200 for a group's id (2.10.5, utils/helpers.py, validate_group_key)
and 250 for a task's id (validate_key); 65 of the latter are reserved for the enclosing groups and `.test`."""
_HASH = 8  # characters of the hash that makes a shortened or changed name unique
# Airflow itself accepts letters of all languages, but its metrics don't, and neither do the subjects of SNS messages.
_REFUSED = re.compile(r"[^A-Za-z0-9_-]+")
_RENDERED = ("model", "seed", "test")


def task_names(project: Project) -> dict[str, str]:
    """Returns the Airflow name of each model, seed and joint test.

    The Airflow name is the node's own name if Airflow accepts that name and no other node has it; otherwise, it is a
    readable part of the name, followed by a hash of the unique id. A node keeps its Airflow name unless the project
    gets another node with the same name. Two nodes never share a task or a group: `<name>` is the group of a model with
    tests; `<name>_run`, `<name>_seed` and `<name>_test` are tasks.

    Returns:
        unique id → name.
    """
    taken = {SOURCES_TASK}
    names: dict[str, str] = {}
    for uid, node in _with_tasks(project):
        own = str(node["name"]) if node["resource_type"] == "test" else uid.split(".", 2)[2].replace(".", "_")
        name = own
        if _REFUSED.search(own) or len(own) > MAX_NAME or taken & set(_ids(node, own)):
            name = f"{_readable(own)[: MAX_NAME - _HASH - 1]}_{_digest(uid)}"
        taken.update(_ids(node, name))
        names[uid] = name
    return names


def task_keys(project: Project) -> dict[str, str]:
    """Returns the key of each model, seed and joint test: the name of its task in a run's records.

    The key is the node's name, including its version, if no other task of the run has this key; otherwise, a hash of
    the unique id is appended. A node keeps its key unless the project gets another node that takes precedence over it.
    A model's or seed's own tests have the key `tests_key(key)`, which is reserved even while there are no such tests.

    Returns:
        unique id → key.
    """
    taken = {DOCS_NODE, SOURCES_KEY}
    keys: dict[str, str] = {}
    for uid, node in _with_tasks(project):
        key = uid.split(".", 2)[2]
        if taken & set(_keys(node, key)):
            key = f"{key}.{_digest(uid)}"
        taken.update(_keys(node, key))
        keys[uid] = key
    return keys


def tests_key(key: str) -> str:
    """Returns the key of the tests that belong to the model or seed with the given key."""
    return f"{key}.test"


def _with_tasks(project: Project) -> list[tuple[str, Mapping[str, Any]]]:
    """Returns the models, seeds and joint tests, in the order of their precedence if their names conflict: models and
    seeds before tests and, within each group, the project's own nodes before those of packages."""
    joint = set(project.joint_tests)
    kinds = ("model", "seed")
    found = [(uid, node) for uid, node in project.nodes.items() if node["resource_type"] in kinds or uid in joint]
    return sorted(found, key=lambda one: (one[0] in joint, one[1]["package_name"] != project.name, one[0]))


def _readable(name: str) -> str:
    """Returns a name with accents removed, and with underscores in place of characters that Airflow rejects."""
    plain = "".join(one for one in unicodedata.normalize("NFKD", name) if not unicodedata.combining(one))
    return _REFUSED.sub("_", plain)


def _digest(uid: str) -> str:
    return hashlib.sha256(uid.encode()).hexdigest()[:_HASH]


def _keys(node: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """Returns the keys of a node's tasks."""
    return (key,) if node["resource_type"] == "test" else (key, tests_key(key))


def _ids(node: Mapping[str, Any], name: str) -> Iterator[str]:
    """Yields the ids that Cosmos (1.15.1) assigns to a node's tasks and group."""
    if node["resource_type"] == "test":
        yield f"{name}_test"
    else:
        yield from (name, f"{name}_{'seed' if node['resource_type'] == 'seed' else 'run'}")


def renamed(project: Project, names: Mapping[str, str], folder: Path) -> tuple[Path, dict[str, str]]:
    """Writes a manifest that has only the fields that Cosmos reads, with nodes renamed to their Airflow names.

    Returns:
        the manifest's path, and a mapping from the unique ids in this manifest to those in the project.
    """
    uids = {
        uid: f"{node['resource_type']}.{node['package_name']}.{names[uid]}" if uid in names else uid
        for uid, node in project.nodes.items()
        if node["resource_type"] in _RENDERED
    }
    nodes = {
        known: {
            "resource_type": project.nodes[uid]["resource_type"],
            "package_name": project.nodes[uid]["package_name"],
            "original_file_path": project.nodes[uid]["original_file_path"],
            "config": {"materialized": project.nodes[uid]["config"].get("materialized")},
            "depends_on": {
                "nodes": [uids.get(parent, parent) for parent in project.nodes[uid]["depends_on"].get("nodes", [])]
            },
        }
        for uid, known in uids.items()
    }
    path = folder / "manifest.json"
    path.write_text(json.dumps({"metadata": {"project_name": project.name}, "nodes": nodes, "sources": {}}))
    return path, {known: uid for uid, known in uids.items()}
