"""Prints a digest of each table of the live release, equal for equal rows; runs in dbt's environment.

`_ingested_at` and the bronze tables, which contain it, are left out. Doubles are rounded to ten digits, because the
last digits of a mean depend on how many threads added it up.
"""

import hashlib

from busco.cli.releases import lake
from busco.lake import releases
from busco.lake.reading import query


def rounded(value: object) -> str:
    return f"{value:.10g}" if isinstance(value, float) else repr(value)


settings, store, environment = lake()
live = releases.read_live(store, environment)
assert live is not None, "nothing is published"
for table in sorted(table for table in live.release.tables if not table.startswith("bronze.")):
    columns, rows = query(settings, store, live.release, f"select columns(c -> c != '_ingested_at') from busco_{table}")
    lines = sorted(" ".join(map(rounded, row)) for row in rows)
    digest = hashlib.sha256("\n".join([" ".join(columns), *lines]).encode()).hexdigest()
    print(table, len(rows), digest)
