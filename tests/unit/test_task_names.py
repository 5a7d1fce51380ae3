"""Each dbt node has a unique name in Airflow and a unique key in a run's records, whatever name dbt allows it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from busco.lake.layout import EnvironmentLayout, RunLayout
from busco.lake.records import DOCS_NODE
from busco.orchestration.task_names import MAX_NAME, SOURCES_KEY, SOURCES_TASK, renamed, task_keys, task_names
from busco.project import Project


def project(*uids: str, parents: dict[str, list[str]] | None = None) -> Project:
    nodes: dict[str, Any] = {}
    for uid in uids:
        kind, package, rest = uid.split(".", 2)
        nodes[uid] = {
            "resource_type": kind, "package_name": package, "name": rest.split(".")[0], "original_file_path": "m.sql",
            "config": {"materialized": "lake"}, "depends_on": {"nodes": (parents or {}).get(uid, [])},
        }  # fmt: skip
    return Project({"metadata": {"project_name": "p"}, "nodes": nodes, "sources": {}})


def ids(made: Project) -> list[str]:
    """Returns all ids that Cosmos creates from the names: models and seeds with or without tests, and joint tests."""
    found = [SOURCES_TASK]
    for uid, name in task_names(made).items():
        kind = uid.split(".")[0]
        found += [f"{name}_test"] if kind == "test" else [name, f"{name}_{'seed' if kind == 'seed' else 'run'}"]
    return found


def test_ordinary_names_are_unchanged() -> None:
    made = project("model.p.orders", "seed.p.states", "model.p.dim.v2", "test.p.sums.abc", parents={
        "test.p.sums.abc": ["model.p.orders", "seed.p.states"],
    })  # fmt: skip
    assert task_names(made) == {
        "model.p.orders": "orders", "seed.p.states": "states", "model.p.dim.v2": "dim_v2", "test.p.sums.abc": "sums",
    }  # fmt: skip


def test_a_test_of_one_model_has_no_name_because_it_is_part_of_the_model_s_task() -> None:
    assert "test.p.t.1" not in task_names(project("model.p.a", "test.p.t.1", parents={"test.p.t.1": ["model.p.a"]}))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("model.p.orders.v1", "model.p.orders_v1"),
        ("model.p.orders", "model.q.orders"),
        ("model.p.a", "model.p.a_run"),
        ("model.p.a_seed", "seed.p.a"),
        ("model.p.a b", "model.p.a_b"),
        ("model.p.a&b", "model.p.a%b"),
        ("model.p." + "n" * 243, "model.p." + "n" * 242),
    ],
)
def test_names_that_would_clash_are_made_unique_and_an_ordinary_one_is_kept(one: str, other: str) -> None:
    both = task_names(project(one, other))
    assert both == task_names(project(other, one)), "the names must not depend on the order of the nodes"
    assert len(set(both.values())) == 2
    assert {task_names(project(one))[one], task_names(project(other))[other]} & set(both.values())


def test_a_group_a_joint_test_and_the_sources_task_never_share_an_id() -> None:
    tests = {"test.p.a.1": ["model.p.a", "model.p.b"], "test.q.a.2": ["model.p.a", "model.p.b"],
             "test.p.sources.3": ["model.p.a", "model.p.b"]}  # fmt: skip
    found = ids(project("model.p.a", "model.p.b", "model.p.a_test", "model.p.sources_test", *tests, parents=tests))
    assert len(found) == len(set(found))


def test_a_shortened_name_is_readable_and_unique_by_its_hash() -> None:
    long = "model.p." + "revenue_by_month_" * 14
    (name,) = task_names(project(long)).values()
    assert len(name) == MAX_NAME
    assert name.startswith("revenue_by_month_revenue")
    assert re.search(r"_[0-9a-f]{8}$", name)
    (name,) = task_names(project("test.p.orders_&_items(total)", "model.p.a", "model.p.b", parents={
        "test.p.orders_&_items(total)": ["model.p.a", "model.p.b"],
    })).keys() - {"model.p.a", "model.p.b"}  # fmt: skip
    assert name == "test.p.orders_&_items(total)"


def test_accents_are_removed_from_a_name_instead_of_the_letters() -> None:
    """Airflow's metrics, and SNS subjects, accept ASCII only."""
    (name,) = task_names(project("model.p.café_não_pago")).values()
    assert re.fullmatch("cafe_nao_pago_[0-9a-f]{8}", name)
    composed, decomposed = task_names(project("model.p.caf\u00e9", "model.p.cafe\u0301")).values()
    assert composed != decomposed
    (name,) = task_names(project("model.p.счета")).values()
    assert re.fullmatch("_+[0-9a-f]{8}", name)


NAMES = st.text(alphabet="ab_.-&é (", min_size=1, max_size=6).filter(lambda name: name.strip(".") == name != "")


@given(st.sets(st.tuples(st.sampled_from(["model", "seed", "test"]), st.sampled_from("pq"), NAMES), max_size=12))
def test_all_ids_are_unique_and_valid_in_airflow(nodes: set[tuple[str, str, str]]) -> None:
    both = ["model.p.x1", "model.p.x2"]
    uids = [f"{kind}.{package}.{name}" for kind, package, name in sorted(nodes)]
    tests = {uid: both for uid in uids if uid.startswith("test.")}
    found = ids(project(*both, *uids, parents=tests))
    assert len(found) == len(set(found))
    # GROUP_KEY_REGEX in utils/helpers.py of Airflow 2.10.5, without letters of other scripts
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,200}", task_id) for task_id in found)


# -- keys in a run's records ------------------------------------------------------------------------------------------


def keys(made: Project) -> list[str]:
    """Returns the keys of all tasks of a run: models and seeds, the tests of each, joint tests, sources, and docs."""
    found = [DOCS_NODE, SOURCES_KEY]
    for uid, key in task_keys(made).items():
        found += [key] if uid.startswith("test.") else [key, f"{key}.test"]
    return found


def test_the_keys_of_ordinary_names_are_the_names() -> None:
    made = project("model.p.orders", "seed.p.states", "model.p.dim.v2", "test.p.sums.abc", parents={
        "test.p.sums.abc": ["model.p.orders", "seed.p.states"],
    })  # fmt: skip
    assert task_keys(made) == {
        "model.p.orders": "orders", "seed.p.states": "states", "model.p.dim.v2": "dim.v2",
        "test.p.sums.abc": "sums.abc",
    }  # fmt: skip


def test_an_analysis_has_no_task_and_so_takes_no_model_s_name_or_key() -> None:
    made = project("analysis.p.orders", "model.p.orders")
    assert task_names(made) == {"model.p.orders": "orders"}
    assert task_keys(made) == {"model.p.orders": "orders"}


def test_a_model_whose_name_ends_in_test_does_not_share_the_key_of_another_model_s_tests() -> None:
    found = task_keys(project("model.p.a", "model.p.a.test"))
    assert found["model.p.a"] == "a"
    assert re.fullmatch(r"a\.test\.[0-9a-f]{8}", found["model.p.a.test"])


def test_a_test_over_two_models_does_not_share_the_key_of_a_model_s_tests() -> None:
    parents = {"test.p.a.test": ["model.p.a", "model.p.b"]}
    found = keys(project("model.p.a", "model.p.b", *parents, parents=parents))
    assert len(found) == len(set(found))


def test_keys_of_a_package_s_nodes_never_change_those_of_the_project() -> None:
    found = task_keys(project("model.p.a.test", "model.b.a", "seed.b.a.test"))
    assert found["model.p.a.test"] == "a.test"


ODD_NAMES = st.one_of(
    st.sampled_from(["docs", "shared", "sources", "sources.test", "tests", "tests/x", "a", "A", "a_test", "tests/1"]),
    st.lists(st.sampled_from(["a", "b", "docs", "test", "v1", "tests/x", "sources"]), min_size=1, max_size=4).map(
        ".".join
    ),
    NAMES,
)


@given(st.sets(st.tuples(st.sampled_from(["model", "seed", "test"]), st.sampled_from("pq"), ODD_NAMES), max_size=14))
def test_two_tasks_of_a_run_never_share_a_key(nodes: set[tuple[str, str, str]]) -> None:
    both = ["model.p.x1", "model.p.x2"]
    uids = [f"{kind}.{package}.{name}" for kind, package, name in sorted(nodes)]
    made = project(*both, *uids, parents={uid: both for uid in uids if uid.startswith("test.")})
    found = keys(made)
    assert len(found) == len(set(found))
    # the objects of a run's records, and the orders for one task, for joint tests, and for the shared runner
    layout = EnvironmentLayout("prod").epoch("r", 1)
    objects = {RunLayout(layout).follower(key) for key in found}
    orders = {RunLayout(layout).order(name, 1) for name in ("shared", *(f"{key}/{n}" for key in found for n in (1, 2)))}
    assert (len(objects), len(orders)) == (len(found), 2 * len(found) + 1)


def test_the_manifest_for_cosmos_has_the_new_names_and_each_maps_back_to_its_node(tmp_path: Path) -> None:
    tests = {"test.p.x & y.1": ["model.p.dim.v1", "model.q.o"], "test.p.own.2": ["model.q.o"]}
    made = project("model.p.dim.v1", "model.q.o", *tests, parents=tests)
    path, known = renamed(made, task_names(made), tmp_path)
    written = json.loads(path.read_text())
    assert set(written["nodes"]) == set(known)
    assert set(known.values()) == set(made.nodes)
    assert "model.p.dim_v1" in known
    joint = next(shown for shown, uid in known.items() if uid == "test.p.x & y.1")
    assert written["nodes"][joint]["depends_on"]["nodes"] == ["model.p.dim_v1", "model.q.o"]
