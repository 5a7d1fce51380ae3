{# Checks that each combination of the columns' values is unique. #}
{% test unique_combination(model, columns) %}
select
    {{ columns | join(', ') }},
    count(*) as times
from {{ model }}
group by {{ columns | join(', ') }}
having count(*) > 1
{% endtest %}


{# Checks that an expression is true in every row; NULL passes. #}
{% test holds(model, expression, column_name=none) %}
select *
from {{ model }}
where not ({{ expression }})
{% endtest %}


{# Checks that a pattern (a regular expression) matches every value as a whole; NULL passes. #}
{% test matches(model, column_name, pattern) %}
select *
from {{ model }}
where not ({{ full_match(column_name, pattern) }})
{% endtest %}
