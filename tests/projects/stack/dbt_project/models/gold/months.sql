select
    date_trunc('month', day) as month,
    sum(orders)::bigint as orders,
    sum(amount) as amount
from {{ ref('fct') }}
group by all
