{#
    Of a bronze table with delivery `rows`: per grain key the latest row, which is the one with the largest
    _ingested_at, then _source_file, then _source_row. Used as a condition: `qualify {{ latest_row(['order_id']) }}`.
#}
{% macro latest_row(grain) %}
    row_number() over (
        partition by {{ grain | join(', ') }}
        order by _ingested_at desc, _source_file desc, _source_row desc
    ) = 1
{% endmacro %}


{# Of a bronze table with delivery `full`: the rows of the newest file, by _ingested_at, then _source_file. #}
{% macro newest_file() %}
    dense_rank() over (order by _ingested_at desc, _source_file desc) = 1
{% endmacro %}
