{#
    Selects the latest row of each grain key in a bronze table with delivery mode `rows`: the row with the largest
    _ingested_at, then _source_file, then _source_row. Use it as a condition: `qualify {{ latest_row(['order_id']) }}`.
#}
{% macro latest_row(grain) %}
    row_number() over (
        partition by {{ grain | join(', ') }}
        order by _ingested_at desc, _source_file desc, _source_row desc
    ) = 1
{% endmacro %}


{#
    Selects the rows of the newest file, by _ingested_at, then _source_file, in a bronze table with delivery mode
    `full`.
#}
{% macro newest_file() %}
    dense_rank() over (order by _ingested_at desc, _source_file desc) = 1
{% endmacro %}
