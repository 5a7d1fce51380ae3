with products as (

    select * from {{ ref('products') }}

),

order_items as (

    select * from {{ ref('fct_order_items') }}

),

sales as (

    select
        product_id,
        count(*) as items_sold,
        min(purchased_on) as first_sold_on,
        max(purchased_on) as last_sold_on
    from order_items
    where is_sold
    group by product_id

)

select
    products.product_id,
    products.category,
    products.weight_g,
    cast(products.length_cm as bigint) * products.height_cm * products.width_cm as volume_cm3,
    coalesce(sales.items_sold, 0) as items_sold,
    sales.first_sold_on,
    sales.last_sold_on
from products
left join sales on products.product_id = sales.product_id
