select *
from {{ ref('retired_forecast') }}
where month is null
