with deliveries as (

    select * from {{ source('bronze', 'products') }}

),

translations as (

    select * from {{ source('bronze', 'product_category_name_translation') }}

),

latest as (

    select *
    from deliveries
    qualify {{ latest_row(['product_id']) }}

),

latest_translations as (

    select *
    from translations
    qualify {{ latest_row(['product_category_name']) }}

)

select
    latest.product_id,
    coalesce(
        nullif(latest_translations.product_category_name_english, ''),
        nullif(latest.product_category_name, ''),
        'unknown'
    ) as category,
    latest.product_name_lenght,
    latest.product_description_lenght,
    latest.product_photos_qty as photos,
    latest.product_weight_g as weight_g,
    latest.product_length_cm as length_cm,
    latest.product_height_cm as height_cm,
    latest.product_width_cm as width_cm,
    latest._ingested_at,
    latest._source_file,
    latest._source_row
from latest
left join latest_translations on latest.product_category_name = latest_translations.product_category_name
