with by_month as (select sum(revenue) as revenue from {{ ref('revenue') }}),

by_customer as (select sum(revenue) as revenue from {{ ref('revenue_by_customer') }})

select *
from by_month
cross join by_customer
where by_month.revenue <> by_customer.revenue
