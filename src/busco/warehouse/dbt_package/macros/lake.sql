{#
    A model becomes one immutable version of its table: Parquet files with field ids, Iceberg metadata, and an entry in
    the run's records. All SQL runs on dbt's own connection; the `lake` plugin (busco.warehouse.plugin) reads and writes
    the records. `job` is a dictionary that each step of the plugin reads and updates.
#}
{% materialization lake, adapter='duckdb', supported_languages=['sql'] %}
    {{ return(busco_make_version(compiled_code)) }}
{% endmaterialization %}


{#  `agate_table` is set only for a seed, which is loaded before `sql` runs.  #}
{% macro busco_make_version(sql, agate_table=none) %}
    {% set relation = this.incorporate(type='view') %}
    {% set job = {'node': model.unique_id, 'sql': sql} %}
    {{ run_hooks(pre_hooks, inside_transaction=False) }}
    {{ run_hooks(pre_hooks, inside_transaction=True) }}

    {% do busco_step('begin', job) %}
    {% if job['keep'] %}
        {% call noop_statement('main', 'KEPT ' ~ job['rows']) %}-- the pinned release's version is kept{% endcall %}
    {% else %}
        {% if agate_table is not none %}
            {% do busco_load_seed(agate_table) %}
        {% endif %}
        {% do busco_check_names(job) %}
        {% do busco_step('describe', job) %}
        {% call statement('main', fetch_result=True) %}{{ job['copy_sql'] }}{% endcall %}
        {% do job.update({'stats': load_result('main')['table'].rows, 'counted': {}}) %}
        {% do busco_step('wrote', job) %}
        {% for name, query in job['count_sql'].items() %}
            {% do job['counted'].update({name: run_query(query).rows[0].dict()}) %}
        {% endfor %}
        {% do busco_step('commit', job) %}
        {% if agate_table is not none %}
            {% call statement('unload_seed') %}drop table {{ relation }}{% endcall %}
        {% endif %}
    {% endif %}
    {% call statement('relation') %}
        create or replace view {{ relation }} as {{ job['view_sql'] }}
    {% endcall %}

    {{ run_hooks(post_hooks, inside_transaction=True) }}
    {{ adapter.commit() }}
    {{ run_hooks(post_hooks, inside_transaction=False) }}
    {% do return({'relations': [relation]}) %}
{% endmacro %}


{#  Runs one step of the plugin.  #}
{% macro busco_step(step, job) %}
    {% do job.update({'step': step}) %}
    {% do adapter.store_relation('lake', this, [], '', 'lake', job) %}
{% endmacro %}


{#
    Describes the SQL, which must be a single query, and checks the column names. Parentheses keep duplicate names
    visible, whereas a subquery would rename them. The newline after the SQL terminates a comment on its last line.
#}
{% macro busco_check_names(job) %}
    {% do busco_step('check_sql', job) %}
    {% do job.update({'described': run_query('describe (\n' ~ job['sql'] ~ '\n)').rows}) %}
    {% do busco_step('check_names', job) %}
    {% if job['known_sql'] %}
        {% do job.update({'known': run_query(job['known_sql']).columns[0].values()}) %}
        {% do busco_step('check_renamed', job) %}
    {% endif %}
{% endmacro %}
