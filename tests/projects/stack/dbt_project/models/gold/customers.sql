select
    md5(customer) as customer_id,
    count(*) as orders
from {{ ref('orders') }}
group by all
