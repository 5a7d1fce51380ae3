select
    users.customer_id,
    users.full_name,
    countries.label as country,
    count(orders.order_id) as number_of_orders,
    count(orders.order_id) >= {{ var('vip_orders') }} as is_vip
from {{ ref('stg_users') }} as users
left join {{ ref('countries') }} as countries on countries.code = users.country
left join {{ ref('stg_orders') }} as orders on orders.customer_id = users.customer_id
group by users.customer_id, users.full_name, countries.label
