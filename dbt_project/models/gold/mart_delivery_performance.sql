with orders as (

    select * from {{ ref('fct_orders') }}

)

select
    customer_state,
    purchase_month,
    count(*) as delivered_orders,
    count(*) filter (where is_late) as late_orders,
    1 - {{ ratio('count(*) filter (where is_late)', 'count(*)') }} as on_time_rate,
    avg(delivery_days) as average_delivery_days,
    {{ continuous_quantile('delivery_days', 0.9) }} as p90_delivery_days
from orders
where is_delivered
group by customer_state, purchase_month
