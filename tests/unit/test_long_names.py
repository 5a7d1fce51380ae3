"""S3 keys have at most 1,024 bytes: a name that would make a longer key is refused at the entry point, and quoted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import duckdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from busco import refusals
from busco.errors import BuscoError
from busco.ingest.files import find
from busco.lake import layout
from busco.lake.deliveries import Contract
from busco.lake.layout import MAX_KEY_BYTES, EnvironmentLayout, RunLayout, key_bytes
from busco.lake.objects import ObjectStore
from busco.lake.records import Column
from busco.lake.runs import open_run
from busco.project import Project
from busco.warehouse import model_sql
from tests.unit.memory_s3 import MemoryS3

ENVIRONMENT = EnvironmentLayout("prod")
ORDERS = Contract("shop", "orders", (Column(name="id", type="VARCHAR"),), ("id",), "rows")


def longest(refused: Any, unit: str = "n") -> int:
    """Returns how many `unit`s a name can have before `refused(name)` is true, by binary search."""
    least, most = 1, MAX_KEY_BYTES + 1
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (least, middle) if refused(unit * middle) else (middle, most)
    return least


# -- keys -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("unit", "size"), [("n", 1), ("é", 6), ("日", 9), ("/", 3), ("%", 3)])
def test_a_keys_length_is_counted_in_bytes_after_quoting(unit: str, size: int) -> None:
    def refused(name: str) -> bool:
        try:
            assert key_bytes(layout.delivery("shop", "orders", name, 1)) <= MAX_KEY_BYTES
        except BuscoError:
            return True
        return False

    rest = key_bytes(layout.delivery("shop", "orders", "", 1))
    assert longest(refused, unit) == (MAX_KEY_BYTES - rest) // size


@pytest.mark.parametrize(
    "key",
    [
        lambda name: layout.delivery("shop", "orders", name, 1),
        lambda name: layout.quarantine("shop", "orders", name, "a"),
        lambda name: layout.bronze_object(name, "orders", "h", "a"),
        layout.docs_page,
        lambda name: ENVIRONMENT.metadata(f"silver.{name}", "v"),
        lambda name: ENVIRONMENT.data(f"silver.{name}", "v"),
        RunLayout(ENVIRONMENT.epoch("r", 1)).entry,
        RunLayout(ENVIRONMENT.epoch("r", 1)).follower,
        lambda name: RunLayout(ENVIRONMENT.epoch("r", 1)).order(name, 1),
        lambda name: RunLayout(ENVIRONMENT.epoch("r", 1)).result(name, 1),
        lambda name: RunLayout(ENVIRONMENT.epoch("r", 1)).log(name, 1),
    ],
)
def test_a_key_that_is_too_long_is_refused_with_the_name_that_it_contains(key: Any) -> None:
    assert key_bytes(key("n" * 700)) <= MAX_KEY_BYTES
    with pytest.raises(BuscoError, match=r"n{70,80}… is too long: .* bytes long, but S3 allows only 1,024"):
        key("n" * MAX_KEY_BYTES)


def test_run_keys_have_a_limited_length_and_a_longer_key_is_refused() -> None:
    assert key_bytes(layout.run_key("é" * 250, "run" * 80)) <= layout.MAX_RUN_BYTES
    with pytest.raises(BuscoError, match=f"the run key {'r' * 80}… is 101 bytes long"):
        open_run(ObjectStore(MemoryS3(), "lake"), ENVIRONMENT, "r" * 101)


def test_the_store_refuses_to_write_a_key_that_is_too_long_for_s3() -> None:
    store = ObjectStore(MemoryS3(), "lake")
    key = "é" * 512
    etag = store.create(key, b"1")
    store.swap(key, b"2", etag)
    store.put(key, b"3")
    for write in (store.create, store.put, lambda key, body: store.swap(key, body, etag)):
        with pytest.raises(BuscoError, match=r"ééé… is too long: .* 1,025 bytes"):
            write(key + "x", b"1")
    assert store.client.writes == [key] * 3


# -- parse ------------------------------------------------------------------------------------------------------------


def project(name: str = "p", **kinds: dict[str, Any]) -> Project:
    manifest = {"metadata": {"project_name": name}, "nodes": {}, "sources": {}, "unit_tests": {}, "macros": {}}
    return Project({**manifest, **kinds})


def node(name: str, kind: str = "test") -> dict[str, Any]:
    config = {"materialized": "lake" if kind == "model" else kind, "severity": "error"}
    return {
        "name": name, "schema": "gold", "resource_type": kind, "config": config, "columns": {}, "raw_code": "",
        "original_file_path": "models/here.yml", "depends_on": {"nodes": ["source.p.bronze.m"], "macros": []},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("file", "made"),
    [
        ("models/here.yml", lambda name: project(nodes={f"test.p.{name}.0123456789": node(name)})),
        ("models/here.yml", lambda name: project(nodes={f"model.p.{name}": {**node(name, "model"), "alias": "m"}})),
        ("models/here.yml", lambda name: project(unit_tests={f"unit_test.p.m.{name}": node(name)})),
        ("models/here.yml", lambda name: project(sources={
            f"source.p.{name}.t": {**node("t", "source"), "schema": "bronze", "source_name": name},
        })),
        ("dbt_project.yml", project),
    ],
    ids=["test", "model", "unit test", "source", "project"],
)  # fmt: skip
def test_a_name_that_is_too_long_for_its_objects_is_refused_at_parse(file: str, made: Any) -> None:
    refusals.check(made("n" * 500))
    with pytest.raises(BuscoError) as refused:
        refusals.check(made("n" * 1020))
    lines = str(refused.value).splitlines()[1:]
    assert len(lines) == 1
    assert f"{file}: the name of the " in lines[0]
    assert "nnn… is too long" in lines[0]


def test_names_accepted_at_parse_make_short_enough_keys_in_all_environments_and_runs() -> None:
    def refused(name: str) -> bool:
        try:
            refusals.check(project(nodes={f"test.p.{name}.0123456789": node(name)}))
        except BuscoError:
            return True
        return False

    name = "é" * longest(refused, "é")
    run = RunLayout(EnvironmentLayout("e" * 31).epoch("r" * 100, 9999))
    for key in (
        run.log(f"test.p.{name}.0123456789", 9999),
        run.order(f"lakehouse.{name}.test/99", 99),
        run.follower(f"lakehouse.{name}.test"),
    ):
        assert key_bytes(key) <= MAX_KEY_BYTES


# -- ingest -----------------------------------------------------------------------------------------------------------


def test_a_file_whose_name_is_too_long_is_refused_and_other_files_are_accepted(tmp_path: Path) -> None:
    deep = tmp_path / "/".join(["é" * 100] * 2)
    deep.mkdir(parents=True)
    for file in (deep / "orders.csv", tmp_path / "orders.csv"):
        file.write_text("id\n1\n")
    found, refused = find([tmp_path], [ORDERS], None)
    assert [file.name for file in found] == ["orders.csv"]
    assert [file for file, _ in refused] == [deep / "orders.csv"]
    assert "the name of the file éééé" in refused[0][1]
    assert "rename it, or run busco ingest on the folder that contains it" in refused[0][1]
    assert len(find([deep], [ORDERS], None)[0]) == 1


# -- build ------------------------------------------------------------------------------------------------------------

FOLDER = f"silver/orders/prod-{'v' * 32}"
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)


@pytest.fixture(scope="module")
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as opened:
        yield opened


def copied(
    connection: duckdb.DuckDBPyConnection, folder: Path, columns: dict[str, str], row: Sequence[Any]
) -> list[str]:
    """Writes a model with one row, partitioned by all columns except `n`, and returns the keys of its files."""
    table = [Column(name=name, type=kind) for name, kind in columns.items()]
    marks = ", ".join(f'cast(? as {column.type}) as "{column.name}"' for column in table)
    sql = model_sql.copy_sql(
        [f'"{column.name}"' for column in table], table, [c.name for c in table if c.name != "n"], f"select {marks}",
        f"s3://lake/{FOLDER}",
    )  # fmt: skip
    (folder / FOLDER).parent.mkdir(parents=True, exist_ok=True)
    sql = sql.replace(f"'s3://lake/{FOLDER}'", f"'{folder / FOLDER}'").replace(
        "return_stats", "return_stats, overwrite_or_ignore"
    )
    return [str(Path(file[0]).relative_to(folder)) for file in connection.execute(sql, row).fetchall()]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.tuples(TEXT, TEXT), null=st.booleans(), over=st.integers(0, 1))
def test_a_partition_is_refused_exactly_if_its_keys_would_be_too_long(
    connection: duckdb.DuckDBPyConnection, tmp_path: Path, texts: tuple[str, str], null: bool, over: int
) -> None:
    """A file in a partition can get a number of up to six digits. A local folder's name can have at most 255 bytes."""
    columns = {"a b": "VARCHAR", "é": "VARCHAR", **dict.fromkeys("cdefgh", "VARCHAR"), "n": "BIGINT"}
    values: list[str | None] = [*texts, None if null else "", "", "", "", "", ""]

    def key() -> str:
        shown = ("__HIVE_DEFAULT_PARTITION__" if value is None else quote(value, safe="~") for value in values)
        named = (quote(name, safe="~") for name in columns)
        parts = [f"/{name}={value}" for name, value in zip(named, shown, strict=False)]
        return f"{FOLDER}{''.join(parts)}/data_0.parquet"

    missing = MAX_KEY_BYTES - len("99999") + over - len(key())
    for position in range(3, len(values)):
        values[position] = "x" * min(max(missing, 0), 240)
        missing -= len(values[position] or "")
    assert missing == 0
    if over:
        with pytest.raises(duckdb.InvalidInputException, match="silver.orders is partitioned by a b, é, c, d, e, f"):
            copied(connection, tmp_path, columns, [*values, 1])
    else:
        assert copied(connection, tmp_path, columns, [*values, 1]) == [key()]


def test_a_partition_by_json_is_checked_like_one_by_text(connection: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    columns = {"j": "JSON", "n": "BIGINT"}
    fitting = '{"a": ["b c", "é"]}'
    assert copied(connection, tmp_path, columns, [fitting, 1]) == [
        f"{FOLDER}/j={quote(fitting, safe='~')}/data_0.parquet"
    ]
    with pytest.raises(duckdb.InvalidInputException, match="silver.orders is partitioned by j, and the files of"):
        copied(connection, tmp_path, columns, [f'["{"x" * MAX_KEY_BYTES}"]', 1])


def test_partitions_by_short_values_are_not_checked_row_by_row() -> None:
    table = [Column(name="day", type="DATE"), Column(name="n", type="BIGINT")]
    assert "url_encode" not in model_sql.copy_sql(['"day"', '"n"'], table, ["day"], "select 1", f"s3://lake/{FOLDER}")


def test_partition_columns_with_long_names_are_refused_whatever_their_values(
    connection: duckdb.DuckDBPyConnection, tmp_path: Path
) -> None:
    columns = {f"{letter * 240}": "DATE" for letter in "abcd"} | {"n": "BIGINT"}
    with pytest.raises(duckdb.InvalidInputException, match="keys longer than S3's limit of 1,024 bytes"):
        copied(connection, tmp_path, columns, ["2018-01-01"] * 4 + [1])
