{# The number of days from one timestamp to another, including fractions of a day, as DOUBLE. #}
{% macro days_between(earlier, later) %}{{ return(adapter.dispatch('days_between')(earlier, later)) }}{% endmacro %}

{% macro default__days_between(earlier, later) %}
    (epoch_us({{ later }}) - epoch_us({{ earlier }})) / cast(86400000000 as double)
{% endmacro %}


{# The first day of a date's month, as DATE. #}
{% macro month_of(expression) %}{{ return(adapter.dispatch('month_of')(expression)) }}{% endmacro %}

{% macro default__month_of(expression) %}
    cast(date_trunc('month', {{ expression }}) as date)
{% endmacro %}


{# The number of calendar months from the first day of one month to the first day of another, as BIGINT. #}
{% macro months_between(earlier, later) %}{{ return(adapter.dispatch('months_between')(earlier, later)) }}{% endmacro %}

{% macro default__months_between(earlier, later) %}
    cast(
        (year({{ later }}) - year({{ earlier }})) * 12 + month({{ later }}) - month({{ earlier }}) as bigint
    )
{% endmacro %}


{# A select expression that returns one row for each day from `first` to `last`, inclusive, as DATE. #}
{% macro all_days(first, last) %}{{ return(adapter.dispatch('all_days')(first, last)) }}{% endmacro %}

{% macro default__all_days(first, last) %}
    cast(unnest(generate_series({{ first }}, {{ last }}, interval 1 day)) as date)
{% endmacro %}


{# The ISO day of the week: 1 (Monday) to 7 (Sunday). #}
{% macro iso_weekday(expression) %}{{ return(adapter.dispatch('iso_weekday')(expression)) }}{% endmacro %}

{% macro default__iso_weekday(expression) %}
    cast(isodow({{ expression }}) as integer)
{% endmacro %}


{# The ISO 8601 week number. #}
{% macro iso_week(expression) %}{{ return(adapter.dispatch('iso_week')(expression)) }}{% endmacro %}

{% macro default__iso_week(expression) %}
    cast(weekofyear({{ expression }}) as integer)
{% endmacro %}
