{{ config(alias='ordering_customers') }}

select customers.customer_id
from {{ ref('customers') }} as customers
where customers.number_of_orders > 0
