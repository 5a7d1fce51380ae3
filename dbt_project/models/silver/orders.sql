{{ config(partition_by=['purchase_month']) }}

with deliveries as (

    select * from {{ source('bronze', 'orders') }}

),

latest as (

    select *
    from deliveries
    qualify {{ latest_row(['order_id']) }}

)

select
    order_id,
    customer_id,
    order_status as status,
    order_purchase_timestamp as purchased_at,
    order_approved_at as approved_at,
    order_delivered_carrier_date as shipped_at,
    order_delivered_customer_date as delivered_at,
    cast(order_estimated_delivery_date as date) as estimated_delivery_on,
    cast(order_purchase_timestamp as date) as purchased_on,
    {{ month_of('order_purchase_timestamp') }} as purchase_month,
    _ingested_at,
    _source_file,
    _source_row
from latest
