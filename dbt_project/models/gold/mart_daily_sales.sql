with orders as (

    select * from {{ ref('fct_orders') }}

),

days as (

    select
        purchased_on,
        count(*) as orders,
        count(distinct customer_unique_id) as customers,
        cast(sum(items) as bigint) as items,
        cast(sum(items_amount) as decimal(18, 2)) as items_amount,
        cast(sum(freight_amount) as decimal(18, 2)) as freight_amount,
        cast(sum(order_amount) as decimal(18, 2)) as order_amount
    from orders
    where is_sold
    group by purchased_on

)

select
    purchased_on,
    orders,
    customers,
    items,
    items_amount,
    freight_amount,
    order_amount,
    cast({{ average_amount('order_amount', 'orders') }} as decimal(12, 2)) as average_order_amount
from days
