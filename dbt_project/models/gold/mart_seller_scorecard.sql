with order_items as (

    select * from {{ ref('fct_order_items') }}

),

orders as (

    select * from {{ ref('fct_orders') }}

),

sold_items as (

    select *
    from order_items
    where is_sold

),

item_sums as (

    select
        seller_id,
        count(distinct order_id) as orders,
        count(*) as items,
        cast(coalesce(sum(price), 0) as decimal(18, 2)) as items_amount
    from sold_items
    group by seller_id

),

seller_orders as (

    select distinct
        seller_id,
        order_id
    from sold_items

),

order_sums as (

    select
        seller_orders.seller_id,
        count(*) filter (where orders.is_delivered) as delivered_orders,
        count(*) filter (where orders.is_late) as late_orders,
        avg(cast(orders.review_score as double)) as average_review_score
    from seller_orders
    inner join orders on seller_orders.order_id = orders.order_id
    group by seller_orders.seller_id

)

select
    item_sums.seller_id,
    item_sums.orders,
    item_sums.items,
    item_sums.items_amount,
    order_sums.delivered_orders,
    order_sums.late_orders,
    {{ ratio('order_sums.late_orders', 'order_sums.delivered_orders') }} as late_rate,
    order_sums.average_review_score,
    row_number() over (order by item_sums.items_amount desc, item_sums.seller_id asc) as amount_rank
from item_sums
inner join order_sums on item_sums.seller_id = order_sums.seller_id
