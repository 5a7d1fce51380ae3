{# Normalizes text: trims it, converts it to lower case, and removes accents. #}
{% macro plain_text(expression) %}{{ return(adapter.dispatch('plain_text')(expression)) }}{% endmacro %}

{% macro default__plain_text(expression) %}
    lower(strip_accents(regexp_replace({{ expression }}, '^[\s\p{Z}]+|[\s\p{Z}]+$', '', 'g')))
{% endmacro %}


{# Whether a pattern (a regular expression) matches the whole text. #}
{% macro full_match(expression, pattern) %}{{ return(adapter.dispatch('full_match')(expression, pattern)) }}{% endmacro %}

{% macro default__full_match(expression, pattern) %}
    regexp_full_match({{ expression }}, '{{ pattern | replace("'", "''") }}')
{% endmacro %}
