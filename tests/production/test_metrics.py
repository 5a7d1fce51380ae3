"""The production stack's metrics arrive in CloudWatch, and its alarms fire for real faults."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.production.stack import Production

HERE = Path(__file__).parent
# nothing is delivered or published in this stack
EMPTY_LAKE = {"ReleaseAge", "DeliveryAge"}


def looked(stack: Production) -> dict[str, Any]:
    code = (HERE.parent / "cloudwatch.py").read_text()
    script = (HERE / "cloudwatch_state.py").read_text()
    found: dict[str, Any] = json.loads(stack.compose("exec", "-T", "local-aws", "python", "-", code, given=script))
    # a look costs a second of CPU time, and the service measures once a minute
    time.sleep(5)
    return found


def test_every_alarm_s_metric_has_data_and_the_certificate_is_measured(stack: Production) -> None:
    def without_data() -> set[str]:
        return {name for name, has_data in looked(stack)["measured"].items() if not has_data}

    # at the first look, the scheduler may not have started
    stack.wait(lambda: without_data() <= EMPTY_LAKE, 150)
    assert without_data() == EMPTY_LAKE
    shown = stack.compose("exec", "-T", "metrics", "busco", "metrics", "show")
    values = dict(line.split()[:2] for line in shown.splitlines())
    # Pebble's certificates are valid for 90 days
    assert 80 < float(values["CertificateDays"]) <= 90
    assert 0 < float(values["SchedulerSilence"]) < 30
    assert float(values["DiskUsed"]) > 0


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_alarms_fire_for_a_killed_scheduler_a_failed_task_and_metrics_that_stop(stack: Production) -> None:
    # until the platform has run for some minutes, missing values count
    stack.wait(lambda: not looked(stack)["firing"], 480)
    # refused by the task `pin`
    run = stack.start("lakehouse", select="-x")
    assert stack.finish(run) == "failed"
    stack.wait(lambda: "busco-tasks-failed" in looked(stack)["firing"], 660)
    stack.compose("kill", "airflow-scheduler")
    stack.wait(lambda: "busco-scheduler-silent" in looked(stack)["firing"], 420)
    stack.compose("up", "--detach", "--wait", "airflow-scheduler")
    stack.wait(lambda: "busco-scheduler-silent" not in looked(stack)["firing"], 300)
    stack.compose("stop", "metrics")
    stopped = time.monotonic()
    stack.wait(lambda: "busco-metrics-missing" in looked(stack)["firing"], 500)
    assert time.monotonic() - stopped > 200, "a short interruption is no alarm"
    stack.compose("up", "--detach", "metrics")
