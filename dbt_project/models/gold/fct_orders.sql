{{ config(partition_by=['purchase_month']) }}

with orders as (

    select * from {{ ref('orders') }}

),

customers as (

    select * from {{ ref('customers') }}

),

order_items as (

    select * from {{ ref('order_items') }}

),

order_payments as (

    select * from {{ ref('order_payments') }}

),

order_reviews as (

    select * from {{ ref('order_reviews') }}

),

item_sums as (

    select
        order_id,
        count(*) as items,
        count(distinct seller_id) as sellers,
        cast(sum(price) as decimal(18, 2)) as items_amount,
        cast(sum(freight) as decimal(18, 2)) as freight_amount
    from order_items
    group by order_id

),

payment_sums as (

    select
        order_id,
        count(*) as payments,
        cast(sum(amount) as decimal(18, 2)) as paid_amount
    from order_payments
    group by order_id

),

type_sums as (

    select
        order_id,
        payment_type,
        sum(amount) as type_amount
    from order_payments
    group by order_id, payment_type

),

main_types as (

    select
        order_id,
        payment_type
    from type_sums
    qualify row_number() over (partition by order_id order by type_amount desc, payment_type asc) = 1

),

last_reviews as (

    select
        order_id,
        score
    from order_reviews
    qualify row_number() over (partition by order_id order by answered_at desc nulls last, review_id asc) = 1

),

flagged as (

    select
        *,
        coalesce(status not in ('canceled', 'unavailable'), true) as is_sold,
        coalesce(status = 'delivered', false) and delivered_at is not null as is_delivered
    from orders

)

select
    flagged.order_id,
    flagged.customer_id,
    customers.customer_unique_id,
    customers.state as customer_state,
    flagged.status,
    flagged.purchased_at,
    flagged.purchased_on,
    flagged.purchase_month,
    flagged.approved_at,
    flagged.delivered_at,
    flagged.estimated_delivery_on,
    coalesce(item_sums.items, 0) as items,
    coalesce(item_sums.sellers, 0) as sellers,
    coalesce(item_sums.items_amount, 0) as items_amount,
    coalesce(item_sums.freight_amount, 0) as freight_amount,
    cast(
        coalesce(item_sums.items_amount, 0) + coalesce(item_sums.freight_amount, 0) as decimal(18, 2)
    ) as order_amount,
    coalesce(payment_sums.paid_amount, 0) as paid_amount,
    coalesce(payment_sums.payments, 0) as payments,
    main_types.payment_type as main_payment_type,
    last_reviews.score as review_score,
    flagged.is_sold,
    flagged.is_delivered,
    case
        when flagged.is_delivered then cast(flagged.delivered_at as date) > flagged.estimated_delivery_on
    end as is_late,
    case
        when flagged.is_delivered then {{ days_between('flagged.purchased_at', 'flagged.delivered_at') }}
    end as delivery_days
from flagged
left join customers on flagged.customer_id = customers.customer_id
left join item_sums on flagged.order_id = item_sums.order_id
left join payment_sums on flagged.order_id = payment_sums.order_id
left join main_types on flagged.order_id = main_types.order_id
left join last_reviews on flagged.order_id = last_reviews.order_id
