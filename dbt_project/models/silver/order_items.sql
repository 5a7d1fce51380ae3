{{ config(partition_by=['purchase_month']) }}

with deliveries as (

    select * from {{ source('bronze', 'order_items') }}

),

orders as (

    select * from {{ ref('orders') }}

),

latest as (

    select *
    from deliveries
    qualify {{ latest_row(['order_id', 'order_item_id']) }}

)

select
    latest.order_id,
    latest.order_item_id as item_number,
    latest.product_id,
    latest.seller_id,
    latest.shipping_limit_date as shipping_limit_at,
    latest.price,
    latest.freight_value as freight,
    orders.purchase_month,
    latest._ingested_at,
    latest._source_file,
    latest._source_row
from latest
inner join orders on latest.order_id = orders.order_id
