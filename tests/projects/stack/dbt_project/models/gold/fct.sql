-- the n of the row that was delivered last determines how long this takes: it counts n times ten million numbers
select
    day,
    count(*) as orders,
    sum(amount) as amount
from {{ ref('orders') }}
where (
    select count(*)
    from range((select coalesce(max_by(n, _ingested_at), 0)::bigint * 10000000 from {{ ref('orders') }})) as numbers(i)
    where hash(i) % 7 = 3
) >= 0
group by day
