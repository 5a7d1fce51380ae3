with deliveries as (

    select * from {{ source('bronze', 'geolocation') }}

),

newest as (

    select *
    from deliveries
    qualify {{ newest_file() }}

),

in_brazil as (

    select
        geolocation_zip_code_prefix,
        geolocation_lat,
        geolocation_lng
    from newest
    where
        geolocation_zip_code_prefix is not null
        and geolocation_lat between -33.8 and 5.3
        and geolocation_lng between -74.0 and -34.7

)

select
    geolocation_zip_code_prefix as zip_prefix,
    {{ continuous_quantile('geolocation_lat', 0.5) }} as latitude,
    {{ continuous_quantile('geolocation_lng', 0.5) }} as longitude,
    count(*) as points
from in_brazil
group by geolocation_zip_code_prefix
