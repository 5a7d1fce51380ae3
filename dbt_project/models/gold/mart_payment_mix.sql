with order_payments as (

    select * from {{ ref('order_payments') }}

),

orders as (

    select * from {{ ref('fct_orders') }}

),

sold_payments as (

    select order_payments.*
    from order_payments
    inner join orders on order_payments.order_id = orders.order_id
    where orders.is_sold

),

types as (

    select
        purchase_month,
        payment_type,
        count(*) as payments,
        count(distinct order_id) as orders,
        cast(coalesce(sum(amount), 0) as decimal(18, 2)) as amount,
        avg(cast(installments as double)) as average_installments
    from sold_payments
    group by purchase_month, payment_type

)

select
    purchase_month,
    payment_type,
    payments,
    orders,
    amount,
    {{ ratio('amount', 'sum(amount) over (partition by purchase_month)') }} as share,
    average_installments
from types
