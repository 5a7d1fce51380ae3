"""Prints whether a run is the live release, and then for each of its models how often it was built.

Runs in dbt's environment; the arguments are the DAG id and the run id.
"""

import sys
from collections import Counter

from busco.cli.releases import lake
from busco.lake import releases
from busco.lake.layout import run_key
from busco.lake.runs import open_run

_, store, environment = lake()
key = run_key(*sys.argv[1:3])
live = releases.read_live(store, environment)
print("live" if live is not None and live.release.run == key else "not live")
built = Counter(result.node for result in open_run(store, environment, key).results() if result.status == "success")
for node, times in sorted(built.items()):
    if node.startswith("model."):
        print(node, times)
