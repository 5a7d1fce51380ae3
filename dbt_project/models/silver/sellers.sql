with deliveries as (

    select * from {{ source('bronze', 'sellers') }}

),

latest as (

    select *
    from deliveries
    qualify {{ latest_row(['seller_id']) }}

)

select
    seller_id,
    seller_zip_code_prefix as zip_prefix,
    {{ plain_text('seller_city') }} as city,
    seller_state as state,
    _ingested_at,
    _source_file,
    _source_row
from latest
