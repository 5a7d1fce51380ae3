"""A synthetic manifest of any size: models in layers, tests of single and of several models, unit tests, sources.

It has the structure and the size of what dbt writes (about 6 kB per model, 2 kB per test, half a megabyte of macros),
so that measurements and tests that use it also hold for a real one.
"""

from __future__ import annotations

import random
from typing import Any

PROJECT = "big"
# Share of the models in each layer of the graph; a layer reads the layers before it, mostly the last one.
_LAYERS = (0.25, 0.2, 0.15, 0.12, 0.1, 0.08, 0.06, 0.04)
_MACROS = 540


def manifest(models: int = 1000, tests: int = 500, *, seed: int = 0) -> dict[str, Any]:
    """Returns a manifest as parsed JSON; the same arguments return the same manifest.

    One in five tests is over two or three models, one in twenty on a source. One in ten models has a unit test, one in
    twelve is a view, one in thirty is ephemeral, and one in fifty is a seed.
    """
    dice = random.Random(seed)
    sources = {uid: _source(uid) for uid in (f"source.{PROJECT}.bronze.raw_{n}" for n in range(max(1, models // 12)))}
    layers: list[list[str]] = []
    nodes: dict[str, Any] = {}
    for depth, count in enumerate(_counts(models)):
        layer = []
        for number in range(count):
            name = f"{'silver' if depth < 3 else 'gold'}_{depth}_{number}"
            if depth == 0 and number % 5 == 4:
                uid = f"seed.{PROJECT}.{name}"
                nodes[uid] = _model(uid, depth, [], dice, "seed")
            else:
                uid = f"model.{PROJECT}.{name}"
                parents = _parents(layers, list(sources), dice)
                nodes[uid] = _model(uid, depth, parents, dice, _materialized(dice))
            layer.append(uid)
        layers.append(layer)
    built = list(nodes)
    for number in range(tests):
        if number % 5 == 0:
            chosen = dice.sample(built, min(len(built), dice.choice((2, 2, 3))))
        elif number % 20 == 1:
            chosen = [dice.choice(list(sources))]
        else:
            chosen = [dice.choice(built)]
        uid = f"test.{PROJECT}.check_{number}.{number:010x}"
        nodes[uid] = _test(uid, chosen, warn=number % 17 == 0)
    only_models = [uid for uid in built if uid.startswith("model.")]
    units = {
        f"unit_test.{PROJECT}.{uid.split('.')[2]}.unit_{n}": _unit(uid)
        for n, uid in enumerate(dice.sample(only_models, len(only_models) // 10))
    }
    return {
        "metadata": {"project_name": PROJECT, "dbt_schema_version": "https://schemas.getdbt.com/dbt/manifest/v12.json"},
        "nodes": nodes,
        "sources": sources,
        "unit_tests": units,
        "exposures": {},
        "macros": {f"macro.dbt.m_{n}": _macro(n) for n in range(_MACROS)},
        "vars": {},
    }


def _counts(models: int) -> list[int]:
    counts = [max(1, int(models * share)) for share in _LAYERS]
    counts[0] = max(1, models - sum(counts[1:]))
    return counts


def _materialized(dice: random.Random) -> str:
    return dice.choices(("lake", "view", "ephemeral"), (53, 5, 2))[0]


def _parents(layers: list[list[str]], sources: list[str], dice: random.Random) -> list[str]:
    if not layers:
        return dice.sample(sources, 1)
    chosen = dice.sample(layers[-1], min(len(layers[-1]), dice.choice((1, 2, 2, 3))))
    if dice.random() < 0.3:
        chosen.append(dice.choice(layers[dice.randrange(len(layers))]))
    return sorted(set(chosen))


def _common(uid: str, kind: str, folder: str) -> dict[str, Any]:
    name = uid.split(".")[2]
    return {
        "database": "memory",
        "name": name,
        "alias": name,
        "resource_type": kind,
        "package_name": PROJECT,
        "path": f"{folder}/{name}.sql",
        "original_file_path": f"models/{folder}/{name}.sql",
        "unique_id": uid,
        "fqn": [PROJECT, folder, name],
        "checksum": {"name": "sha256", "checksum": f"{hash_of(uid):064x}"},
        "patch_path": f"{PROJECT}://models/{folder}/{name}.yml",
        "description": f"The rows of {name}, one for each thing that it describes.",
        "docs": {"show": True, "node_color": None},
        "created_at": 1.0,
        "language": "sql",
        "meta": {},
        "tags": [folder],
    }


def hash_of(text: str) -> int:
    """Returns a hash that is the same in every process, unlike `hash`."""
    found = 0
    for char in text:
        found = (found * 131 + ord(char)) % 2**61
    return found


def _model(uid: str, depth: int, parents: list[str], dice: random.Random, materialized: str) -> dict[str, Any]:
    folder = "silver" if depth < 3 else "gold"
    kind = "seed" if materialized == "seed" else "model"
    common = _common(uid, kind, folder)
    columns = [f"column_{n}" for n in range(dice.randrange(6, 16))]
    read = [parent.rsplit(".", 1)[1] for parent in parents]
    steps = [f"p{n} as (\n\n    select * from {{{{ ref('{name}') }}}}\n\n)" for n, name in enumerate(read)]
    body = ",\n    ".join(columns)
    return {
        **common,
        "schema": folder,
        "columns": {name: _column(name, required=name == "column_0") for name in columns},
        "config": {**_CONFIG, "materialized": materialized, "schema": folder, "tags": [folder]},
        "unrendered_config": {"materialized": materialized, "schema": folder, "tags": [folder]},
        "raw_code": f"with {', '.join(steps)}\n\nselect\n    {body}\nfrom p0\nwhere column_1 is not null",
        "refs": [{"name": p.split(".")[-1], "package": None, "version": None} for p in parents],
        "depends_on": {"macros": [f"macro.dbt.m_{hash_of(uid) % _MACROS}"], "nodes": parents},
        "contract": {"enforced": True, "alias_types": True, "checksum": "c" * 64},
        "constraints": [],
        "primary_key": ["column_0"],
    }


def _test(uid: str, parents: list[str], *, warn: bool) -> dict[str, Any]:
    common = _common(uid, "test", "tests")
    return {
        **common,
        "schema": "dbt_test__audit",
        "columns": {},
        "config": {**_CONFIG, "materialized": "test", "severity": "warn" if warn else "ERROR", "fail_calc": "count(*)"},
        "unrendered_config": {},
        "raw_code": "{{ test_relationships(**_dbt_generic_test_kwargs) }}" + " " * 200,
        "refs": [{"name": p.split(".")[-1], "package": None, "version": None} for p in parents],
        "depends_on": {"macros": ["macro.dbt.m_1"], "nodes": parents},
        "contract": {"enforced": False, "alias_types": True, "checksum": None},
        "test_metadata": {"name": "relationships", "kwargs": {"column_name": "column_0"}, "namespace": None},
        "attached_node": parents[0],
    }


def _source(uid: str) -> dict[str, Any]:
    name = uid.rsplit(".", 1)[1]
    return {
        **_common(f"source.{PROJECT}.{name}", "source", "bronze"),
        "unique_id": uid,
        "schema": "bronze",
        "identifier": name,
        "source_name": "bronze",
        "columns": {f"column_{n}": _column(f"column_{n}", required=False) for n in range(8)},
        "config": {"enabled": True, "meta": {"grain": ["column_0"]}},
        "freshness": None,
    }


def _unit(model: str) -> dict[str, Any]:
    rows = [{f"column_{n}": f"value {row}" for n in range(6)} for row in range(4)]
    return {
        "model": model.rsplit(".", 1)[1],
        "name": f"unit_{model.rsplit('.', 1)[1]}",
        "resource_type": "unit_test",
        "given": [{"input": "ref('a')", "rows": rows, "format": "dict"}],
        "expect": {"rows": rows},
        "depends_on": {"macros": [], "nodes": [model]},
    }


def _column(name: str, *, required: bool) -> dict[str, Any]:
    not_null = {"type": "not_null", "name": None, "expression": None, "warn_unenforced": True, "to_columns": []}
    return {
        "name": name,
        "description": f"the meaning of {name}, in plain language that a reader of the docs understands",
        "meta": {},
        "data_type": "VARCHAR",
        "constraints": [not_null] if required else [],
        "quote": None,
        "config": {"meta": {}, "tags": []},
        "tags": [],
        "granularity": None,
        "doc_blocks": [],
    }


def _macro(number: int) -> dict[str, Any]:
    return {
        "name": f"m_{number}",
        "package_name": "dbt",
        "macro_sql": f"{{% macro m_{number}(relation) -%}}\n" + "    select * from {{ relation }} limit 0\n" * 18,
        "depends_on": {"macros": []},
        "unique_id": f"macro.dbt.m_{number}",
    }


_CONFIG: dict[str, Any] = {
    "enabled": True,
    "alias": None,
    "database": None,
    "meta": {"owner": "analytics"},
    "group": None,
    "incremental_strategy": None,
    "persist_docs": {},
    "post-hook": [],
    "pre-hook": [],
    "quoting": {},
    "column_types": {},
    "full_refresh": None,
    "on_schema_change": "ignore",
    "grants": {},
    "packages": [],
    "docs": {"show": True, "node_color": None},
    "contract": {"enforced": True, "alias_types": True},
    "access": "protected",
}
