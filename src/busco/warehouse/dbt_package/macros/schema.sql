{# The schema is the layer (`silver`, `gold`), without the target's prefix. A project can override this macro. #}
{% macro duckdb__generate_schema_name(custom_schema_name, node) %}
    {{- custom_schema_name | trim if custom_schema_name else target.schema -}}
{% endmacro %}
