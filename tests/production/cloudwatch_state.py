"""Prints, as JSON, which of the platform's alarms would be in the state ALARM now, and which of their metrics have had
data within the last hour; runs in the local AWS's container.

Arguments: the code of tests/cloudwatch.py.
"""

import json
import sys
from datetime import UTC, datetime, timedelta

from busco.embedded import aws, keys
from busco.settings import get_settings

settings = get_settings()
known: dict[str, object] = {}
exec(sys.argv[1], known)
cloudwatch = aws.client("cloudwatch", "http://127.0.0.1:4566", "us-east-1", keys.owner(settings.state))
now = datetime.now(UTC)
alarms = cloudwatch.describe_alarms(AlarmNamePrefix="busco-")["MetricAlarms"]
firing = {one["AlarmName"]: known["state"](cloudwatch, one, now) for one in alarms}  # type: ignore[operator]
measured = {}
for one in alarms:
    points = cloudwatch.get_metric_statistics(
        Namespace=one["Namespace"], MetricName=one["MetricName"], Dimensions=one["Dimensions"],
        StartTime=now - timedelta(hours=1), EndTime=now, Period=3600, Statistics=["SampleCount"],
    )["Datapoints"]  # fmt: skip
    measured[one["MetricName"]] = bool(points)
print(json.dumps({"firing": [name for name, state in firing.items() if state == "ALARM"], "measured": measured}))
