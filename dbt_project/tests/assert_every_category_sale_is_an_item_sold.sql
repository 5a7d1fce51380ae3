with order_items as (

    select * from {{ ref('fct_order_items') }}

),

category_sales as (

    select * from {{ ref('mart_category_sales') }}

),

sums as (

    select
        (
            select count(*) from order_items
            where is_sold
        ) as items,
        (select coalesce(sum(items), 0) from category_sales) as items_of_categories

)

select *
from sums
where items != items_of_categories
