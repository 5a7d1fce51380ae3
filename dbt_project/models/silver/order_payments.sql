{{ config(partition_by=['purchase_month']) }}

with deliveries as (

    select * from {{ source('bronze', 'order_payments') }}

),

orders as (

    select * from {{ ref('orders') }}

),

latest as (

    select *
    from deliveries
    qualify {{ latest_row(['order_id', 'payment_sequential']) }}

)

select
    latest.order_id,
    latest.payment_sequential as payment_number,
    latest.payment_type,
    latest.payment_installments as installments,
    latest.payment_value as amount,
    orders.purchase_month,
    latest._ingested_at,
    latest._source_file,
    latest._source_row
from latest
inner join orders on latest.order_id = orders.order_id
