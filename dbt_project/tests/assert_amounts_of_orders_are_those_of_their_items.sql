with orders as (

    select * from {{ ref('fct_orders') }}

),

order_items as (

    select * from {{ ref('fct_order_items') }}

),

sums as (

    select
        (select sum(items_amount) from orders) as of_orders,
        (select coalesce(sum(price), 0) from order_items) as of_items,
        (select sum(freight_amount) from orders) as freight_of_orders,
        (select coalesce(sum(freight), 0) from order_items) as freight_of_items

)

select *
from sums
where of_orders != of_items or freight_of_orders != freight_of_items
