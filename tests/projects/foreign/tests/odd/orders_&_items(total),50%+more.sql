select orders.order_id
from {{ ref('orders_of_customers_with_amounts_and_months_for_the_quarterly_report_in') }} as orders
left join {{ ref('customers') }} as customers on orders.customer_id = customers.customer_id
where customers.customer_id is null
