-- takes as long as the row that was delivered last says: n is in tens of millions of numbers to count
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
