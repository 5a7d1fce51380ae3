{#  dbt itself creates the view; before that, the view's column names are checked in the same way as a table's.  #}
{% macro duckdb__get_create_view_as_sql(relation, sql) %}
    {% do busco_check_names({'node': model.unique_id, 'sql': sql}) %}
    {{ return(create_view_as(relation, sql)) }}
{% endmacro %}
