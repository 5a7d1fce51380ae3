select day, sum(n) as n, sum(amount) as amount, count(*) as orders, list(id order by id) as ids from {{ ref('v_orders') }} group by day
