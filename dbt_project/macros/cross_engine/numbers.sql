{# A quantile with linear interpolation between neighboring values, as DOUBLE. #}
{% macro continuous_quantile(expression, share) %}
    {{- return(adapter.dispatch('continuous_quantile')(expression, share)) -}}
{% endmacro %}

{% macro default__continuous_quantile(expression, share) %}
    quantile_cont({{ expression }}, {{ share }})
{% endmacro %}


{# A ratio as DOUBLE; NULL if the denominator is 0. #}
{% macro ratio(numerator, denominator) %}
    cast({{ numerator }} as double) / nullif(cast({{ denominator }} as double), 0)
{% endmacro %}


{#
    An amount divided by a count, as DECIMAL(12,2), with half cents rounded away from zero (amounts can be negative).
    It is never computed as DOUBLE, because the DOUBLE closest to 1.005 is less than 1.005.
#}
{% macro average_amount(amount, count) %}{{ return(adapter.dispatch('average_amount')(amount, count)) }}{% endmacro %}

{% macro default__average_amount(amount, count) %}
    cast(
        sign({{ amount }}) * (
            (cast(abs({{ amount }}) * 100 as hugeint) * 2 + {{ count }}) // (nullif({{ count }}, 0) * 2)
        ) as decimal(18, 0)
    ) * cast(0.01 as decimal(3, 2))
{% endmacro %}
