with orders as (

    select * from {{ ref('fct_orders') }}

),

sold as (

    select
        customer_unique_id,
        purchase_month,
        order_amount,
        min(purchase_month) over (partition by customer_unique_id) as cohort_month
    from orders
    where is_sold and customer_unique_id is not null

),

cohorts as (

    select
        cohort_month,
        count(distinct customer_unique_id) as cohort_customers
    from sold
    group by cohort_month

),

months as (

    select
        cohort_month,
        {{ months_between('cohort_month', 'purchase_month') }} as months_since_first,
        count(distinct customer_unique_id) as active_customers,
        count(*) as orders,
        cast(sum(order_amount) as decimal(18, 2)) as order_amount
    from sold
    group by cohort_month, purchase_month

)

select
    months.cohort_month,
    months.months_since_first,
    months.active_customers,
    months.orders,
    months.order_amount,
    cohorts.cohort_customers,
    {{ ratio('months.active_customers', 'cohorts.cohort_customers') }} as retention_rate
from months
inner join cohorts on months.cohort_month = cohorts.cohort_month
