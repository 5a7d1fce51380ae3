select id, customer, amount, day, n, _ingested_at
from {{ source('bronze', 'orders') }}
qualify row_number() over (partition by id order by _ingested_at desc, _source_file desc, _source_row desc) = 1
