with orders as (

    select * from {{ ref('orders') }}

),

bounds as (

    select
        min(purchased_on) as first_day,
        max(estimated_delivery_on) as last_day
    from orders

),

days as (

    select {{ all_days('first_day', 'last_day') }} as date_day
    from bounds

)

select
    date_day,
    cast(year(date_day) as integer) as year,
    cast(quarter(date_day) as integer) as quarter,
    cast(month(date_day) as integer) as month,
    {{ month_of('date_day') }} as month_start,
    {{ iso_week('date_day') }} as iso_week,
    {{ iso_weekday('date_day') }} as day_of_week,
    {{ iso_weekday('date_day') }} >= 6 as is_weekend
from days
