{#
    Seeds are lake tables too. dbt's own macros load the file into an in-memory table, so that types and values are the
    same as with dbt-duckdb anywhere else. The version is written from that table.
#}
{% materialization seed, adapter='duckdb', supported_languages=['sql'] %}
    {% set agate_table = load_agate_table() %}
    {#- dbt's own seed task prints the first rows of this table -#}
    {% do store_result('agate_table', response='OK', agate_table=agate_table) %}
    {{ return(busco_make_version('select * from ' ~ this, agate_table)) }}
{% endmaterialization %}


{#  Loads a seed into a table with the seed's name, which replaces the view of the seed's previous version.  #}
{% macro busco_load_seed(agate_table) %}
    {% do busco_step('check_header', {
        'node': model.unique_id, 'file': agate_table.original_abspath, 'delimiter': config.get('delimiter', ','),
        'names': agate_table.column_names
    }) %}
    {% call statement('drop_view') %}drop view if exists {{ this }}{% endcall %}
    {% do create_csv_table(model, agate_table) %}
    {% if agate_table.rows | length > 0 %}
        {% do load_csv_rows(model, agate_table) %}
    {% endif %}
{% endmacro %}
