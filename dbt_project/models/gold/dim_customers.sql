with customers as (

    select * from {{ ref('customers') }}

),

orders as (

    select * from {{ ref('fct_orders') }}

),

people as (

    select distinct customer_unique_id
    from customers
    where customer_unique_id is not null

),

order_sums as (

    select
        customer_unique_id,
        min(purchased_at) as first_order_at,
        max(purchased_at) as last_order_at,
        count(*) filter (where is_sold) as orders,
        cast(coalesce(sum(order_amount) filter (where is_sold), 0) as decimal(18, 2)) as lifetime_amount
    from orders
    group by customer_unique_id

),

latest_orders as (

    select
        orders.customer_unique_id,
        customers.state,
        customers.city
    from orders
    inner join customers on orders.customer_id = customers.customer_id
    qualify row_number() over (
        partition by orders.customer_unique_id
        order by orders.purchased_at desc, orders.order_id desc
    ) = 1

)

select
    people.customer_unique_id,
    order_sums.first_order_at,
    order_sums.last_order_at,
    coalesce(order_sums.orders, 0) as orders,
    coalesce(order_sums.lifetime_amount, 0) as lifetime_amount,
    coalesce(order_sums.orders, 0) > 1 as is_repeat,
    latest_orders.state,
    latest_orders.city
from people
left join order_sums on people.customer_unique_id = order_sums.customer_unique_id
left join latest_orders on people.customer_unique_id = latest_orders.customer_unique_id
