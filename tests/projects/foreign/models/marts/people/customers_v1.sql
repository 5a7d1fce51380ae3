select
    users.customer_id,
    users.full_name,
    count(orders.order_id) as number_of_orders
from {{ ref('stg_users') }} as users
left join {{ ref('stg_orders') }} as orders on orders.customer_id = users.customer_id
group by users.customer_id, users.full_name
