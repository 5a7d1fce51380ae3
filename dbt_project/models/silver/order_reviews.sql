with deliveries as (

    select * from {{ source('bronze', 'order_reviews') }}

),

orders as (

    select * from {{ ref('orders') }}

),

latest as (

    select *
    from deliveries
    qualify {{ latest_row(['review_id', 'order_id']) }}

)

select
    latest.review_id,
    latest.order_id,
    latest.review_score as score,
    nullif(latest.review_comment_title, '') as title,
    nullif(latest.review_comment_message, '') as message,
    cast(latest.review_creation_date as date) as created_on,
    latest.review_answer_timestamp as answered_at,
    latest._ingested_at,
    latest._source_file,
    latest._source_row
from latest
inner join orders on latest.order_id = orders.order_id
