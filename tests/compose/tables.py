"""All tables of the live release as one text, the same for the same rows: run where dbt's environment is.

When a row was ingested (`_ingested_at`, and all of bronze) is left out. Doubles have ten digits: in their last ones a
mean depends on how many threads have added it up.
"""

import hashlib

from busco.cli.releases import lake
from busco.lake import releases
from busco.lake.reading import query


def told(value: object) -> str:
    return f"{value:.10g}" if isinstance(value, float) else repr(value)


settings, store, environment = lake()
live = releases.read_live(store, environment)
assert live is not None, "nothing is published"
for table in sorted(table for table in live.release.tables if not table.startswith("bronze.")):
    columns, rows = query(settings, live.release, f"select columns(c -> c != '_ingested_at') from busco_{table}")
    lines = sorted(" ".join(map(told, row)) for row in rows)
    digest = hashlib.sha256("\n".join([" ".join(columns), *lines]).encode()).hexdigest()
    print(table, len(rows), digest)
