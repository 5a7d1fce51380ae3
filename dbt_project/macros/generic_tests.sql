{# The columns together are unique. #}
{% test unique_combination(model, columns) %}
select
    {{ columns | join(', ') }},
    count(*) as times
from {{ model }}
group by {{ columns | join(', ') }}
having count(*) > 1
{% endtest %}


{# An expression that holds in every row; NULL counts as holding. #}
{% test holds(model, expression, column_name=none) %}
select *
from {{ model }}
where not ({{ expression }})
{% endtest %}


{# Every value is, from end to end, of a pattern (a regular expression); NULL is. #}
{% test matches(model, column_name, pattern) %}
select *
from {{ model }}
where not ({{ full_match(column_name, pattern) }})
{% endtest %}
