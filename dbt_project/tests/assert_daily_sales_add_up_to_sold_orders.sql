with orders as (

    select * from {{ ref('fct_orders') }}

),

daily_sales as (

    select * from {{ ref('mart_daily_sales') }}

),

sums as (

    select
        (
            select coalesce(sum(order_amount), 0) from orders
            where is_sold
        ) as of_orders,
        (select coalesce(sum(order_amount), 0) from daily_sales) as of_days,
        (
            select count(*) from orders
            where is_sold
        ) as orders,
        (select coalesce(sum(orders), 0) from daily_sales) as orders_of_days

)

select *
from sums
where of_orders != of_days or orders != orders_of_days
