"""What the nodes of a dbt project are called in Airflow, and the manifest from which Cosmos renders them.

dbt takes names that Airflow refuses (`orders_&_items(total)`, 240 characters), and Cosmos makes one name of two
(`orders.v1` and `orders_v1`) or numbers those that are long. So each node gets its name here, before Cosmos sees it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from busco.project import Project

# the task of all tests that are about sources alone
SOURCES_TASK = "sources_test"
MAX_NAME = 180
"""Characters. A task's id has at most 250 (Airflow 2.10.5, utils/helpers.py, validate_key), of which 65 are left for
the groups around it and for `.test`; a group's has at most 200 (validate_group_key)."""
_HASH = 8  # characters of a shortened or changed name that tell it from others
_REFUSED = re.compile(r"[^A-Za-z0-9_-]+")
_RENDERED = ("model", "seed", "test")


def task_names(project: Project) -> dict[str, str]:
    """The name of each model, seed and joint test in Airflow: the node's own, where Airflow takes it and no other node
    has it; else what can be read of it and a hash of the unique id.

    A node keeps its name as long as the project has no other node that would be called the same. Two nodes never share
    a task or a group: `<name>` is the group of a model with tests, `<name>_run`, `<name>_seed` and `<name>_test` are
    tasks.

    Returns:
        unique id → name.
    """
    taken = {SOURCES_TASK}
    names: dict[str, str] = {}
    joint = set(project.joint_tests)
    rendered = [uid for uid, node in project.nodes.items() if node["resource_type"] != "test" or uid in joint]
    # of two that would be called the same, the project's own goes before a package's, and a model before a test
    for uid in sorted(
        rendered, key=lambda uid: (uid in joint, project.nodes[uid]["package_name"] != project.name, uid)
    ):
        node = project.nodes[uid]
        own = str(node["name"]) if uid in joint else uid.split(".", 2)[2].replace(".", "_")
        name = own
        if _REFUSED.search(own) or len(own) > MAX_NAME or taken & set(_ids(node, own)):
            digest = hashlib.sha256(uid.encode()).hexdigest()[:_HASH]
            name = f"{_REFUSED.sub('_', own)[: MAX_NAME - _HASH - 1]}_{digest}"
        taken.update(_ids(node, name))
        names[uid] = name
    return names


def _ids(node: Mapping[str, Any], name: str) -> Iterator[str]:
    """The ids that Cosmos (1.15.1) gives to a node's tasks and group."""
    if node["resource_type"] == "test":
        yield f"{name}_test"
    else:
        yield from (name, f"{name}_{'seed' if node['resource_type'] == 'seed' else 'run'}")


def renamed(project: Project, names: Mapping[str, str], folder: Path) -> tuple[Path, dict[str, str]]:
    """Writes a manifest in which nodes are called by their names in Airflow, with what Cosmos reads of one.

    Returns:
        the file, and the unique ids in it → the project's.
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
