with deliveries as (

    select * from {{ source('bronze', 'customers') }}

),

latest as (

    select *
    from deliveries
    qualify {{ latest_row(['customer_id']) }}

)

select
    customer_id,
    customer_unique_id,
    customer_zip_code_prefix as zip_prefix,
    {{ plain_text('customer_city') }} as city,
    customer_state as state,
    _ingested_at,
    _source_file,
    _source_row
from latest
