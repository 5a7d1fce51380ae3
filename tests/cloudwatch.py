"""Evaluates CloudWatch's alarms, because the local AWS ignores an alarm's dimensions and what missing data means."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

_COMPARE = {
    "GreaterThanThreshold": lambda value, threshold: value > threshold,
    "LessThanThreshold": lambda value, threshold: value < threshold,
}


def state(cloudwatch: Any, alarm: dict[str, Any], now: datetime, before: str = "OK") -> str:
    """Returns an alarm's state at a time: `OK` or `ALARM`.

    It follows the CloudWatch User Guide, "Configuring how CloudWatch alarms treat missing data", except that it looks
    at no more than the alarm's evaluation periods.

    Args:
        alarm: from DescribeAlarms.
        now: in UTC; only periods that have ended before are evaluated.
        before: the state that the alarm keeps if it ignores missing data.
    """
    period, number = alarm["Period"], alarm["EvaluationPeriods"]
    end = datetime.fromtimestamp(now.timestamp() // period * period, UTC)
    found = cloudwatch.get_metric_statistics(
        Namespace=alarm["Namespace"],
        MetricName=alarm["MetricName"],
        Dimensions=alarm["Dimensions"],
        StartTime=end - timedelta(seconds=period * number),
        EndTime=end,
        Period=period,
        Statistics=[alarm["Statistic"]],
    )["Datapoints"]
    values = [point[alarm["Statistic"]] for point in found]
    missing = number - len(values)
    treated = alarm["TreatMissingData"]
    if missing and treated == "ignore":
        return before
    breaching = sum(_COMPARE[alarm["ComparisonOperator"]](value, alarm["Threshold"]) for value in values)
    breaching += missing if treated == "breaching" else 0
    return "ALARM" if breaching >= alarm.get("DatapointsToAlarm", number) else "OK"
