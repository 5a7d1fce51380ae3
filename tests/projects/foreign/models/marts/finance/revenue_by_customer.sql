select
    customers.customer_id,
    customers.country,
    cast(coalesce(sum(orders.amount), 0) as decimal(18, 2)) as revenue
from {{ ref('customers') }} as customers
left join {{ ref('int_completed_orders') }} as orders on orders.customer_id = customers.customer_id
group by 1, 2
