{#  A view is dbt's own; before it is made, the names of its columns are checked as a table's are.  #}
{% macro duckdb__get_create_view_as_sql(relation, sql) %}
    {% do busco_check_names({'node': model.unique_id, 'sql': sql}) %}
    {{ return(create_view_as(relation, sql)) }}
{% endmacro %}
