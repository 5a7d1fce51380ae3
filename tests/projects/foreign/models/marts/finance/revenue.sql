{{ config(alias='monthly_revenue', pre_hook="set variable reporting_currency = '" ~ var('currency') ~ "'") }}

select
    cast(date_trunc('month', order_date) as date) as month,
    getvariable('reporting_currency') as currency,
    cast(sum(amount) as decimal(18, 2)) as revenue,
    count(*) as orders
from {{ ref('int_completed_orders') }}
group by 1, 2
