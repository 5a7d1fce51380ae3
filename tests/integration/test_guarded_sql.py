"""SQL of models, hooks and tests is refused before it runs if it writes to the lake, opens connections or reads files.

All of these nodes are built in one run on top of a live release.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from busco.errors import BuscoError
from busco.lake.records import Result
from busco.lake.runs import Run
from tests.integration.conftest import MINI
from tests.platforms import ENVIRONMENT, Platform, platform

ORDERS = "id,customer,amount,day,n\n1,ann,1.00,2018-01-01,1\n"
CURSOR = "adapter.add_query('select 1')"

# each model's SQL and the expected error; POINTER stands for the URL of the object that names the live release
ATTACKS = {
    "pre_hook": ("{{ config(pre_hook=\"copy (select 1 as x) to 'POINTER' (format csv)\") }} select 1 as a",
                 "COPY reads and writes files"),
    "post_hook": ("{{ config(post_hook=[{'sql': \"copy (select 1) to 'POINTER'\", 'transaction': false}]) }}"
                  " select 1 as a", "COPY reads and writes files"),
    "closes": ("select 1 as a) to 'POINTER' (format csv); --", "syntax error"),
    "two": ("select 1 as a; copy (select 1) to 'POINTER'", "COPY reads and writes files"),
    "describes": ("select 1 as a); copy (select 1) to 'POINTER'; describe (select 1", "syntax error"),
    "v_closes": ("{{ config(materialized='view') }} select 1 as a); create secret (type s3);"
                 " select (1", "syntax error"),
    "asks": ("{% if execute %}{% do run_query(\"copy (select 1) to 'POINTER'\") %}{% endif %} select 1 as a",
             "COPY reads and writes files"),
    "calls": ("{% if execute %}{% call statement('x') %}attach ':memory:' as y{% endcall %}{% endif %} select 1 as a",
              "ATTACH opens another database"),
    "adds": ("{% if execute %}{% do adapter.add_query(\"install httpfs\") %}{% endif %} select 1 as a",
             "INSTALL and LOAD load code"),
    "exists": ("{% if execute and adapter.location_exists(\"POINTER\") %}{% do exceptions.warn('there') %}{% endif %}"
               " select * from read_text('POINTER')", "read_text: it reads or lists files"),
    "cursor": ("{% if execute %}{% do " + CURSOR + "[1].cursor().execute(\"copy (select 1) to 'POINTER'\") %}"
               "{% endif %} select 1 as a", "cursor"),
    "handle": ("{% if execute %}{% do " + CURSOR + "[0].handle.cursor().execute(\"copy (select 1) to 'POINTER'\") %}"
               "{% endif %} select 1 as a", "COPY reads and writes files"),
    "in_macro": ("{{ config(pre_hook='{{ writes_pointer() }}') }} select 1 as a", "COPY reads and writes files"),
    "prepares": ("{{ config(pre_hook=[\"prepare p as copy (select 1) to 'POINTER'\", 'execute p']) }} select 1 as a",
                 "PREPARE hides what is run"),
    "sets": ("{{ config(pre_hook=\"set s3_endpoint = 'evil.example'\") }} select 1 as a",
             "SET and RESET change the connection's settings"),
    "hides": ("{{ config(pre_hook='create secret (type s3)') }} select 1 as a", "create secret"),
    "environ": ("select content from read_text('/proc/self/environ')", "read_text: it reads or lists files"),
    "settings": ("select value from duckdb_settings() where name like 's3_%'",
                 "duckdb_settings: it shows the connection's settings"),
    "setting": ("select current_setting('s3_secret_access_key') as a",
                "current_setting: it shows the connection's settings"),
    "path": ("select *\nfrom 's3://LAKE/gold/x.parquet'", "it names a path in the lake"),
    "glue": ("{% if execute %}{% do adapter.store_relation('glue|x', this, [], '', 'parquet', {}) %}{% endif %}"
             " select 1 as a", "the plugin glue|x is not allowed"),
    "forges": ("{% if execute %}{% do adapter.store_relation('lake', this, [], '', 'lake', {'step': 'begin',"
               " 'node': 'model.busco.fct', 'sql': 'select 1'}) %}{% endif %} select 1 as a",
               "can't run a step of model.busco.fct"),
    "forges_view": ("{{ config(pre_hook=\"{{ forged_view(this, model) }}\") }} select 1 as a",
                    "COPY reads and writes files"),
    "forges_files": ("{{ config(pre_hook=\"{{ forged_copy(this, model) }}\") }} select 1 as a",
                     "COPY reads and writes files"),
    "shadows": ("{{ config(pre_hook='create or replace macro count_star() as coalesce(sum(0), 0)::bigint') }}"
                " select 1 as a", "the macro would replace DuckDB's function count_star"),
    "replaces": ("{{ config(pre_hook=\"create or replace view gold.fct as select 1 as a\") }} select 1 as a",
                 "gold.fct is reserved for the platform's tables"),
    "unmakes": ("{{ config(materialized='view', post_hook=\"create or replace view {{ this }} as select 1 as b\") }}"
                " select 1 as a", "gold.unmakes is reserved for the platform's tables"),
    "again": ("{{ config(post_hook=\"create or replace view {{ this }} as select 1 as b\") }} select 1 as a",
              "gold.again is reserved for the platform's tables"),
    "enumerates": ("{{ config(pre_hook=\"create type mood as enum (select id from {{ ref('orders') }})\") }}"
                   " select 1 as a",
                   "an enum can't be created from a query"),
    "undeclared": ("select *\nfrom silver.orders",
                   "it names silver.orders, which model.busco.undeclared does not declare"),
    "asks_undeclared": ("{% if execute %}{% do run_query('select max(id) from bronze.orders') %}{% endif %}"
                        " select 1 as a",
                        "write source('bronze', 'orders') instead"),
}  # fmt: skip
MACROS = """
{% macro writes_pointer() %}copy (select 1) to 'POINTER'{% endmacro %}
{% macro forged_view(relation, model) %}
    {% if execute %}
    {% set job = {'step': 'begin', 'node': model.unique_id, 'sql': 'select 1'} %}
    {% set name = "v as select 1; copy (select 1) to 'POINTER'; create view w" %}
    {% for step in ('begin', 'check_names', 'describe', 'wrote', 'commit') %}
        {% do job.update({'step': step, 'described': [['a', 'INTEGER']], 'stats': [], 'counted': {}}) %}
        {% do adapter.store_relation('lake', name, [], '', 'lake', job) %}
    {% endfor %}
    create or replace view {{ name }} as {{ job['view_sql'] }}
    {% endif %}
{% endmacro %}
{% macro forged_copy(relation, model) %}
    {% if execute %}
    {% set job = {'step': 'begin', 'node': model.unique_id, 'sql': 'select 1'} %}
    {% do adapter.store_relation('lake', relation, [], '', 'lake', job) %}
    {% do job.update({'step': 'check_names', 'described': [['a', 'INTEGER']]}) %}
    {% do adapter.store_relation('lake', relation, [], '', 'lake', job) %}
    {% do job.update({'step': 'describe', 'table': 'gold.fct', 'version': 'x'}) %}
    {% do adapter.store_relation('lake', relation, [], '', 'lake', job) %}
    {{ 'select 1' if 'gold/fct' in job['copy_sql'] else job['copy_sql'] | replace(job['version'], 'x') }}
    {% endif %}
{% endmacro %}
"""
USES_ALL = """-- depends_on: {{ ref('fct') }}
{{ config(
    pre_hook=[
        "create or replace temp table rates as select 'EUR' as currency, 2 as rate",
        "create or replace temp macro doubled(x) as x * 2",
        "set variable wanted = 3",
        "analyze",
        "{{ log('a hook') }}",
        "-- nothing but a comment"
    ],
    post_hook=["comment on view {{ this }} is 'seen'", "drop table if exists rates"]
) }}
{% set days = run_query("select count(*) as n from " ~ ref('fct')).rows[0][0] if execute else 0 %}
select doubled(rate) as a, getvariable('wanted') as b, {{ days }}::int as n from rates
"""


@dataclass
class Built:
    platform: Platform
    run: Run
    pointer: bytes
    results: dict[str, Result]

    def of(self, name: str) -> Result:
        (result,) = [one for node, one in self.results.items() if node.split(".")[2:3] == [name]]
        return result


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, served: Path) -> Iterator[Built]:
    with platform(tmp_path_factory.mktemp("guarded"), MINI, served) as made:
        made.deliver(ORDERS)
        made.build()
        before = made.store.get(ENVIRONMENT.current)
        assert before is not None
        bucket = made.settings.lake_bucket

        def filled(text: str) -> str:
            return text.replace("POINTER", f"s3://{bucket}/{ENVIRONMENT.current}").replace("LAKE", bucket)

        for name, (sql, _) in ATTACKS.items():
            made.model(f"gold/{name}", filled(sql))
        made.model("gold/uses_all", USES_ALL)
        made.write("dbt_project/macros/m.sql", filled(MACROS))
        made.write("dbt_project/tests/undeclared_test.sql", "select 1 from silver.orders -- {{ ref('uses_all') }}")
        made.write("dbt_project/tests/reads_files.sql",
                   "select * from {{ ref('uses_all') }} where (select count(*) from glob('/etc/*')) > 0")  # fmt: skip
        run, _ = made.built()
        yield Built(made, run, before.body, run.latest_results())


@pytest.mark.parametrize("name", ATTACKS)
def test_a_malicious_model_fails_with_the_reason_and_makes_no_version(built: Built, name: str) -> None:
    result = built.of(name)
    assert result.status == "error", f"{name}: {result.status}\n{result.message}"
    assert ATTACKS[name][1] in result.error
    # these three make a version before they fail, but a run with an error can't publish it
    if name not in ("post_hook", "forges_view", "again"):
        assert not [t for t, entry in built.run.entries().items() if t == f"gold.{name}" and entry.version]


def test_a_refusal_names_the_model_and_the_line(built: Built) -> None:
    assert "model.busco.pre_hook was rejected before it ran" in built.of("pre_hook").error
    assert "LINE 1: copy (select 1 as x) to" in built.of("pre_hook").error
    assert "LINE 2: from 's3://" in built.of("path").error


def test_a_test_that_reads_files_is_refused(built: Built) -> None:
    assert "glob: it reads or lists files" in built.of("reads_files").error


def test_a_test_that_reads_an_undeclared_table_is_refused(built: Built) -> None:
    assert (
        "it names silver.orders, which test.busco.undeclared_test does not declare" in built.of("undeclared_test").error
    )


def test_the_live_release_is_unchanged_and_nothing_else_was_written(built: Built) -> None:
    store = built.platform.store
    now = store.get(ENVIRONMENT.current)
    assert now is not None
    assert now.body == built.pointer
    assert json.loads(now.body)
    written = [key for key in store.keys("gold/") if key.split("/")[1] not in ("fct", "uses_all", "post_hook", "again")]
    assert written == []


def test_harmless_hooks_still_work(built: Built) -> None:
    assert built.of("uses_all").status == "success", built.of("uses_all").error
    entry = built.run.entries()["gold.uses_all"]
    assert entry.version is not None
    assert entry.version.rows == 1


def test_sql_in_a_column_s_data_type_is_not_run(mini: Platform) -> None:
    mini.model("silver/typed", "{{ config(materialized='view') }} select 1 as a")
    kind = f"int) as a; copy (select 1) to 's3://{mini.settings.lake_bucket}/gold/x.csv'; select cast(1 as int"
    mini.write("dbt_project/models/silver/typed.yml",
               f'models: [{{name: typed, columns: [{{name: a, data_type: "{kind}"}}]}}]')  # fmt: skip
    with pytest.raises(BuscoError, match="COPY reads and writes files"):
        mini.built("typed")
    assert list(mini.store.keys("gold/")) == []
