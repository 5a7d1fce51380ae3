with order_items as (

    select * from {{ ref('fct_order_items') }}

)

select
    purchase_month,
    category,
    count(distinct order_id) as orders,
    count(*) as items,
    cast(coalesce(sum(price), 0) as decimal(18, 2)) as items_amount,
    cast(coalesce(sum(freight), 0) as decimal(18, 2)) as freight_amount,
    count(distinct seller_id) as sellers
from order_items
where is_sold
group by purchase_month, category
