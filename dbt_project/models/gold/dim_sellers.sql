with sellers as (

    select * from {{ ref('sellers') }}

),

locations as (

    select * from {{ ref('locations') }}

),

order_items as (

    select * from {{ ref('fct_order_items') }}

),

sales as (

    select
        seller_id,
        min(purchased_on) as first_sold_on,
        max(purchased_on) as last_sold_on
    from order_items
    where is_sold
    group by seller_id

)

select
    sellers.seller_id,
    sellers.city,
    sellers.state,
    locations.latitude,
    locations.longitude,
    sales.first_sold_on,
    sales.last_sold_on
from sellers
left join locations on sellers.zip_prefix = locations.zip_prefix
left join sales on sellers.seller_id = sales.seller_id
