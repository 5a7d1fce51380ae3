{{ config(partition_by=['purchase_month']) }}

with order_items as (

    select * from {{ ref('order_items') }}

),

orders as (

    select * from {{ ref('fct_orders') }}

),

products as (

    select * from {{ ref('products') }}

),

sellers as (

    select * from {{ ref('sellers') }}

)

select
    order_items.order_id,
    order_items.item_number,
    order_items.product_id,
    products.category,
    order_items.seller_id,
    sellers.state as seller_state,
    orders.customer_state,
    orders.purchased_on,
    orders.purchase_month,
    order_items.price,
    order_items.freight,
    orders.is_sold
from order_items
inner join orders on order_items.order_id = orders.order_id
left join products on order_items.product_id = products.product_id
left join sellers on order_items.seller_id = sellers.seller_id
