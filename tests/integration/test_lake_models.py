"""Models with the materialization lake: what they write, what is refused, and what readers see in the meantime."""

from __future__ import annotations

import json
import os
import signal
import threading

import pytest

from busco.aws import client
from busco.catalog import athena
from busco.errors import BuscoError
from busco.lake.runs import open_run
from busco.warehouse.dbt import opened
from busco.warehouse.runner import work
from tests import warm
from tests.platforms import ENVIRONMENT, Platform, csv_text

HEADER = ("id", "customer", "amount", "day", "n")


def orders(days: int, each: int = 2) -> str:
    rows = [(f"o{day}-{i}", "x", "1.50", f"2018-01-{day + 1:02}", day) for day in range(days) for i in range(each)]
    return csv_text(HEADER, rows)


def error_of(platform: Platform, node: str) -> str:
    (run,) = platform.store.folders(ENVIRONMENT.runs("")[:-1])[-1:]
    return open_run(platform.store, ENVIRONMENT, run).latest_results()[node].error


# -- the four ways in which dbt-duckdb's external models fail on S3 ---------------------------------------------------


def test_a_model_without_rows_becomes_a_table_with_columns_and_no_rows(mini: Platform) -> None:
    mini.deliver(csv_text(HEADER, []))
    assert mini.build().good
    assert mini.query("select count(*) from busco_silver.orders") == [("0",)]
    assert mini.query("select day, n from busco_gold.fct") == []
    assert mini.duckdb("select count(*), count(day) from busco_gold.fct") == [(0, 0)]
    described = mini.duckdb("describe busco_gold.fct")
    assert [(row[0], row[1]) for row in described] == [
        ("day", "DATE"), ("orders", "BIGINT"), ("n", "BIGINT"), ("amount", "DECIMAL(18,2)"), ("ids", "VARCHAR[]"),
    ]  # fmt: skip


def test_a_partition_whose_key_is_too_long_for_s3_fails_its_model_naming_table_and_column(mini: Platform) -> None:
    """Each of the 170 letters takes up six bytes in the key."""
    mini.model(
        "gold/long",
        "{{ config(partition_by='country') }} select repeat('é', 170) as country, 1 as n union all select 'PT', 2",
    )
    run, _ = mini.built("long")
    error = run.latest_results()["model.busco.long"].error
    expected = (
        "gold.long is partitioned by country, and the files of at least one partition would have keys longer than S3's "
        "limit of 1,024 bytes"
    )
    assert expected in error
    assert 'where coalesce(length(url_encode(cast("country" as varchar))), 26) > ' in error
    assert "é" * 170 not in error


def test_partitions_that_a_table_no_longer_has_are_not_read(mini: Platform) -> None:
    mini.deliver(orders(6))
    mini.build()
    assert mini.live().tables["silver.orders"].files == 6
    assert mini.query("select count(*), count(distinct day) from busco_silver.orders") == [("12", "6")]
    mini.model(
        "silver/orders",
        (MODEL := "select * from (" + model_text(mini, "silver/orders") + "\n) where day = '2018-01-01'"),
    )
    assert "partition_by" in MODEL
    mini.build()
    assert mini.live().tables["silver.orders"].files == 1
    assert mini.query("select count(*), count(distinct day) from busco_silver.orders") == [("2", "1")]
    assert mini.duckdb("select count(distinct day) from busco_silver.orders") == [(1,)]


def model_text(platform: Platform, path: str) -> str:
    return (platform.home / f"dbt_project/models/{path}.sql").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    "step", ["metadata", *(pytest.param(step, marks=pytest.mark.long) for step in ("take", "copy", "enter"))]
)
def test_a_writer_that_is_killed_at_any_step_leaves_the_live_table_unchanged(mini: Platform, step: str) -> None:
    mini.deliver(orders(3))
    mini.build()
    before = mini.live()
    mini.deliver(orders(5), "orders-more.csv")
    killer = mini.write("kill.py", KILLER)
    result = warm.run(str(killer), step, cwd=mini.home, environment=os.environ)
    assert result.returncode == -signal.SIGKILL, result.stdout + result.stderr
    assert mini.live() == before
    assert mini.query("select count(*) from busco_silver.orders") == [("6",)]
    run = sorted(mini.store.folders(f"{ENVIRONMENT.root}runs/"))[-1]
    entry = open_run(mini.store, ENVIRONMENT, run).entries().get("silver.orders")
    assert entry is None or entry.version is None
    outcome = work(mini.settings, run)
    assert outcome is not None
    assert outcome.good


KILLER = """
import os, signal, sys
step = sys.argv[1]
def die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)
from busco.lake.runs import Run
from busco.lake import versions
from busco.warehouse import session
if step == "take":
    take = Run.take
    def taken(self, *rest):
        take(self, *rest)
        die()
    Run.take = taken
if step == "copy":
    session.Session.commit = die
if step == "metadata":
    written = versions.write_metadata
    def only_bronze(store, layout, version, *rest):
        written(store, layout, version, *rest)
        if "silver" in version.table: die()
    versions.write_metadata = only_bronze
if step == "enter":
    Run.enter = die
from busco.cli import main
main(["dbt", "build"])
"""


@pytest.mark.long
def test_readers_get_no_errors_while_tables_are_replaced(mini: Platform) -> None:
    mini.deliver(orders(4))
    mini.build()
    stop, problems, seen = threading.Event(), [], set()
    settings, release = mini.settings, mini.live()

    def read_athena() -> None:
        while not stop.is_set():
            try:
                sql = "select count(*), sum(n) from busco_silver.orders"
                seen.add(athena.query(client("athena", settings), sql, "busco", "busco_gold").rows[0])
            except BaseException as error:
                problems.append(error)
            stop.wait(0.02)

    def read_duckdb() -> None:
        while not stop.is_set():
            try:
                assert mini.duckdb("select count(*), sum(n) from busco_silver.orders", release) == [(8, 12)]
            except BaseException as error:
                problems.append(error)
            stop.wait(0.02)

    readers = [threading.Thread(target=read_athena), threading.Thread(target=read_duckdb)]
    for reader in readers:
        reader.start()
    for number in range(2):
        mini.deliver(csv_text(HEADER, [(f"new{number}", "x", "1", "2018-02-01", 100)]), f"orders-{number}.csv")
        mini.build()
    stop.set()
    for reader in readers:
        reader.join()
    assert problems == []
    assert seen <= {(str(8 + k), str(12 + 100 * k)) for k in range(3)}
    assert len(seen) > 1


# -- contracts, types, constraints ------------------------------------------------------------------------------------


def refused(platform: Platform, sql: str, yaml: str = "") -> str:
    platform.model("gold/t", sql, yaml)
    assert not platform.build(select="t").good
    return error_of(platform, "model.busco.t")


@pytest.mark.parametrize(
    ("expression", "advice"),
    [
        ("sum(n)", "cast(… as BIGINT)"),
        ("1::uinteger", "cast(… as BIGINT)"),
        ("now() - now()", "epoch(…)"),
        ("gen_random_uuid()", "cast(… as VARCHAR)"),
        ("time '10:00'", "cast(… as VARCHAR)"),
        ("[1, 2]::integer[2]", "cast(… as T[])"),
    ],
)
def test_a_type_that_tables_cant_store_is_refused_with_the_cast_to_use(
    mini: Platform, expression: str, advice: str
) -> None:
    assert advice in refused(mini, f"select {expression} as x from {{{{ source('bronze', 'orders') }}}}")


def test_not_null_is_checked_with_the_counts_from_copy_for_nested_columns_too(mini: Platform) -> None:
    mini.deliver(orders(1))
    yaml = (
        "models: [{name: t, config: {contract: {enforced: true}}, columns: ["
        "{name: a, data_type: INTEGER, constraints: [{type: not_null}]},"
        "{name: l, data_type: 'INTEGER[]', constraints: [{type: not_null}]}]}]"
    )
    sql = "select {a} as a, {l} as l from {{{{ source('bronze', 'orders') }}}}"
    assert "a is NULL in 1 row" in refused(mini, sql.format(a="nullif(_source_row, 1)::integer", l="[1, null]"), yaml)
    text = refused(mini, sql.format(a="1", l="case when _source_row = 1 then [1] end"), yaml)
    assert "l is NULL in 1 row" in text
    mini.model("gold/t", sql.format(a="1", l="[null]::integer[]"), yaml)
    assert mini.build(select="t").good


def test_differences_between_sql_and_contract_are_listed_by_column(mini: Platform) -> None:
    yaml = (
        "models: [{name: t, config: {contract: {enforced: true}}, columns: ["
        "{name: a, data_type: INTEGER}, {name: b, data_type: VARCHAR}, {name: c, data_type: BIGINT}]}]"
    )
    text = refused(mini, "select 'x' as a, sum(n) as c, 1 as d from {{ source('bronze', 'orders') }}", yaml)
    assert "a: INTEGER in the contract, VARCHAR in the SQL" in text
    assert "b: in the contract but not in the SQL" in text
    assert "d: in the SQL but not in the contract" in text
    assert "c:" not in text, "a HUGEINT is cast to the contract's BIGINT with an overflow check"


def test_a_wide_integer_that_overflows_its_contract_is_an_error(mini: Platform) -> None:
    yaml = "models: [{name: t, config: {contract: {enforced: true}}, columns: [{name: a, data_type: BIGINT}]}]"
    text = refused(mini, "select 9223372036854775808::hugeint as a", yaml)
    assert "out of range" in text


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        ("gold/t.sql", "{{ config(materialized='table') }} select 1 as a", "write materialized='lake'"),
        ("gold/t.sql", "{{ config(materialized='external') }} select 1 as a", "write materialized='lake'"),
        (
            "gold/t.sql",
            "select {% if is_incremental() %}1{% else %}2{% endif %} as a",
            "is_incremental() is always false",
        ),
        ("gold/t.py", "def model(dbt, session):\n    return 1\n", "write the model in SQL"),
        (
            "gold/fct.yml",
            "models: [{name: fct, columns: [{name: day, data_type: DATE, constraints: [{type: unique}]}]}]",
            "constraints unique can't be enforced",
        ),
    ],
)
def test_features_that_the_lake_cant_support_are_refused_at_parse(
    mini: Platform, path: str, text: str, message: str
) -> None:
    mini.write(f"dbt_project/models/{path}", text)
    with opened(mini.settings) as dbt, pytest.raises(BuscoError) as refusal:
        dbt.parse()
    assert message in str(refusal.value)
    assert path in str(refusal.value)


# -- runs -------------------------------------------------------------------------------------------------------------


def test_R7_unchanged_tables_are_kept_and_their_tests_run_anyway(mini: Platform) -> None:
    mini.deliver(orders(2))
    mini.build()
    first = mini.live()
    mini.build()
    assert {t: v.version for t, v in mini.live().tables.items()} == {t: v.version for t, v in first.tables.items()}
    run = open_run(mini.store, ENVIRONMENT, mini.live().run)
    results = run.latest_results()
    assert results["model.busco.fct"].kept
    tests = [r for node, r in results.items() if node.startswith("test.")]
    assert tests
    assert all(r.status == "success" and r.reads == {"gold.fct": first.tables["gold.fct"].version} for r in tests)
    mini.model("silver/v_orders", "{{ config(materialized='view') }} select * from {{ ref('orders') }} where n < 5")
    mini.build()
    assert mini.live().tables["gold.fct"].version != first.tables["gold.fct"].version, "its view changed"
    assert mini.live().tables["silver.orders"].version == first.tables["silver.orders"].version
    mini.model("silver/orders", "{{ config(meta={'volatile': true}) }}" + model_text(mini, "silver/orders"))
    mini.build()
    again = mini.live().tables["silver.orders"].version
    mini.build()
    assert mini.live().tables["silver.orders"].version != again, "volatile is always built"


@pytest.mark.slow
def test_R7_a_model_that_is_selected_by_name_in_a_run_is_built_even_if_unchanged(mini: Platform) -> None:
    mini.deliver(orders(2))
    mini.build()
    run, _ = mini.built()
    assert run.entries()["silver.orders"].kept
    mini.busco("dbt", "build", "--run", run.name, "--select", "orders")
    entry = run.entries()["silver.orders"]
    assert not entry.kept
    assert entry.version.version != mini.live().tables["silver.orders"].version


@pytest.mark.long
def test_each_node_runs_alone_in_a_new_process_with_its_parents_from_the_run_or_its_pin(mini: Platform) -> None:
    mini.deliver(orders(2))
    mini.build()
    base = mini.live()
    printed = mini.busco("dbt", "build", "--select", "orders", "--full-refresh")
    key = printed.split("run ", 1)[1].split()[0]
    entry = open_run(mini.store, ENVIRONMENT, key).entries()["silver.orders"]
    assert entry.version.version != base.tables["silver.orders"].version
    for node in ("fct", "not_null_fct_day", "v_orders", "sums"):
        mini.busco("dbt", "build", "--run", key, "--select", node)
    made = open_run(mini.store, ENVIRONMENT, key).entries()["gold.fct"].version
    assert made.inputs == {"silver.orders": entry.version.version}, "through the view, from this run"


def test_a_parent_without_a_version_is_an_error_and_not_an_empty_table(mini: Platform) -> None:
    mini.deliver(orders(1))
    printed = mini.busco("dbt", "build", "--select", "fct", status=1)
    assert "no version of silver.orders" in printed


def test_a_table_whose_test_failed_is_not_published(mini: Platform) -> None:
    mini.deliver(orders(2))
    mini.build()
    before = mini.live()
    once = model_text(mini, "gold/fct")
    # the unit test's rows have one order per day, the data has two
    mini.model("gold/fct", f"{once}\nunion all\n{once}\nhaving count(*) > 1")
    mini.deliver(orders(3), "orders-2.csv")
    outcome = mini.build()
    assert outcome.statuses["test.busco.unique_fct_day.2e7c400124"] == "failed"
    assert mini.live() == before


def test_seeds_are_lake_tables(mini: Platform) -> None:
    mini.deliver(orders(1))
    mini.write("dbt_project/seeds/regions.csv", 'code,name\n01,north\n02,"so,uth"\n')
    mini.write(
        "dbt_project/seeds/s.yml", "seeds: [{name: regions, config: {schema: silver, column_types: {code: VARCHAR}}}]"
    )
    mini.model("gold/by_region", "select code, name from {{ ref('regions') }}")
    assert mini.build().good
    assert mini.query("select code, name from busco_gold.by_region order by 1") == [("01", "north"), ("02", "so,uth")]
    assert "silver.regions" in mini.live().tables


@pytest.mark.long
def test_R6_a_large_seed_is_rebuilt_when_it_changes_and_an_unchanged_seed_is_kept(mini: Platform) -> None:
    mini.deliver(orders(1))
    rows = "".join(f"{number},{'x' * 90}\n" for number in range(12_000))
    for last in ("first", "second"):
        mini.write("dbt_project/seeds/large.csv", f"id,text\n{rows}99999,{last}\n")
        mini.write("dbt_project/seeds/small.csv", "id\n1\n")
        seeds = "[{name: large, config: {schema: silver}}, {name: small, config: {schema: silver}}]"
        mini.write("dbt_project/seeds/l.yml", f"seeds: {seeds}")
        mini.build()
        assert mini.query("select text from busco_silver.large where id = 99999") == [(last,)]
    entries = open_run(mini.store, ENVIRONMENT, mini.live().run).entries()
    assert (entries["silver.large"].kept, entries["silver.small"].kept) == (False, True)


@pytest.mark.slow
def test_the_docs_catalog_has_every_table_with_its_columns(mini: Platform) -> None:
    mini.deliver(orders(1))
    mini.build()
    stored = mini.store.get(f"{mini.live().docs}catalog.json")
    catalog = json.loads(stored.body)
    assert set(catalog["nodes"]) == {"model.busco.orders", "model.busco.v_orders", "model.busco.fct"}
    assert catalog["nodes"]["model.busco.fct"]["columns"]["ids"]["type"] == "VARCHAR[]"
    assert mini.store.get("docs/index.html").body == mini.store.get(f"{mini.live().docs}index.html").body


def test_the_error_of_a_broken_model_names_the_line_of_its_compiled_sql(mini: Platform) -> None:
    mini.deliver(orders(1))
    text = refused(mini, "with a as (\n  select 1 as x\n)\nselect x,\n  nothing\nfrom a -- end")
    assert "nothing" in text
    assert "LINE 5:" in text


def test_a_selection_can_t_pass_options_to_dbt(mini: Platform) -> None:
    from busco.errors import BuscoError
    from busco.warehouse.dbt import opened

    target = mini.write("kept.txt", "as it was")
    with opened(mini.settings) as dbt:
        dbt.parse()
        for arguments in ((f"fct --record-timing-info {target}", ""), ("fct", f"orders --record-timing-info {target}")):
            with pytest.raises(BuscoError, match="begins with a dash"):
                dbt.select(*arguments)
        assert "model.busco.fct" in dbt.select("fct\n  v_orders", "orders").nodes
    assert target.read_text() == "as it was"


@pytest.mark.long
def test_eight_threads_build_models_in_parallel(mini: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUSCO_DBT_THREADS", "8")
    from busco.settings import get_settings

    get_settings.cache_clear()
    mini.deliver(orders(2))
    for number in range(24):
        mini.model(f"gold/m{number}", f"select day, n + {number} as n from {{{{ ref('orders') }}}}")
    outcome = mini.build()
    assert outcome.good
    assert len(mini.live().tables) == 27
    assert [mini.duckdb(f"select count(*) from busco_gold.m{n}") for n in (0, 23)] == [[(4,)], [(4,)]]


@pytest.mark.slow
def test_a_build_needs_no_network(mini: Platform) -> None:
    mini.deliver(orders(1))
    nowhere = {
        "http_proxy": "http://127.0.0.1:9",
        "https_proxy": "http://127.0.0.1:9",
        "HOME": str(mini.home / "empty"),
    }
    mini.busco("dbt", "build", environment=nowhere)
