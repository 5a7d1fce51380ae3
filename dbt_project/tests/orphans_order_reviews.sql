{{ config(severity='warn') }}

-- Rows of order_reviews whose order is not in bronze. Silver leaves them out until the order arrives.
with deliveries as (

    select * from {{ source('bronze', 'order_reviews') }}

),

orders as (

    select * from {{ ref('orders') }}

),

latest as (

    select *
    from deliveries
    qualify {{ latest_row(['review_id', 'order_id']) }}

)

select
    latest.order_id,
    latest._source_file,
    latest._source_row
from latest
left join orders on latest.order_id = orders.order_id
where orders.order_id is null
