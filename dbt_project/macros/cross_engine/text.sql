{# Text in one spelling: trimmed, lower case, without accents. #}
{% macro plain_text(expression) %}{{ return(adapter.dispatch('plain_text')(expression)) }}{% endmacro %}

{% macro default__plain_text(expression) %}
    lower(strip_accents(trim({{ expression }})))
{% endmacro %}
