{# The layer is the schema: `silver`, `gold`, without the target's prefix. A project may have a rule of its own. #}
{% macro duckdb__generate_schema_name(custom_schema_name, node) %}
    {{- custom_schema_name | trim if custom_schema_name else target.schema -}}
{% endmacro %}
