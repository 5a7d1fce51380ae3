{#
    A model becomes one immutable version of its table: Parquet files with field ids, Iceberg metadata, and an entry in
    the run's records. All SQL runs on dbt's own connection; the plugin `lake` (busco.warehouse.plugin) reads and writes
    the records. `job` is a dictionary that each step of the plugin reads and fills.
#}
{% materialization lake, adapter='duckdb', supported_languages=['sql'] %}
    {{ return(busco_make_version(compiled_code)) }}
{% endmaterialization %}


{#  Seeds are lake tables too: DuckDB reads the file, with the types that the YAML says.  #}
{% materialization seed, adapter='duckdb', supported_languages=['sql'] %}
    {#- dbt's own seed task prints the first rows of this table -#}
    {% do store_result('agate_table', response='OK', agate_table=load_agate_table()) %}
    {% set types = [] %}
    {% for name, type in config.get('column_types', {}).items() %}
        {% do types.append("'" ~ name ~ "': '" ~ type ~ "'") %}
    {% endfor %}
    {% for column in model.columns.values() if column.data_type and column.name not in config.get('column_types', {}) %}
        {% do types.append("'" ~ column.name ~ "': '" ~ column.data_type ~ "'") %}
    {% endfor %}
    {% set file = (model.root_path or project_root) ~ '/' ~ model.original_file_path %}
    {% set query %}
select * from read_csv('{{ file | replace("'", "''") }}', header = true, delim = '{{ config.get('delimiter', ',') }}'
    {%- if types %}, types = { {{- types | join(', ') -}} }{% endif %})
    {% endset %}
    {{ return(busco_make_version(query)) }}
{% endmaterialization %}


{% macro busco_make_version(sql) %}
    {% set relation = this.incorporate(type='view') %}
    {% set job = {'node': model.unique_id, 'step': 'begin', 'sql': sql} %}
    {{ run_hooks(pre_hooks, inside_transaction=False) }}
    {{ run_hooks(pre_hooks, inside_transaction=True) }}

    {% do adapter.store_relation('lake', relation, [], '', 'lake', job) %}
    {% if job['keep'] %}
        {% call noop_statement('main', 'KEPT ' ~ job['rows']) %}-- the pinned release's version is kept{% endcall %}
    {% else %}
        {#- newlines around the model's SQL: a comment at its end must end there -#}
        {% set described = run_query('describe select * from (\n' ~ sql ~ '\n)') %}
        {% do job.update({'step': 'describe', 'described': described.rows}) %}
        {% do adapter.store_relation('lake', relation, [], '', 'lake', job) %}
        {% call statement('main', fetch_result=True) %}{{ job['copy_sql'] }}{% endcall %}
        {% do job.update({'step': 'null_sql', 'stats': load_result('main')['table'].rows}) %}
        {% do adapter.store_relation('lake', relation, [], '', 'lake', job) %}
        {% if job['null_sql'] %}
            {% do job.update({'nested_nulls': run_query(job['null_sql']).rows[0].dict()}) %}
        {% endif %}
        {% do job.update({'step': 'commit'}) %}
        {% do adapter.store_relation('lake', relation, [], '', 'lake', job) %}
    {% endif %}
    {% call statement('relation') %}
        create or replace view {{ relation }} as {{ job['view_sql'] }}
    {% endcall %}

    {{ run_hooks(post_hooks, inside_transaction=True) }}
    {{ adapter.commit() }}
    {{ run_hooks(post_hooks, inside_transaction=False) }}
    {% do return({'relations': [relation]}) %}
{% endmacro %}
