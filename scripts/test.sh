#!/usr/bin/env bash
# Runs the tests that don't need Docker, each in its own Python environment, in two parallel lanes; arguments go to pytest.
# Lists the slowest tests at the end and writes the results to .busco/reports as JUnit files.
# usage: scripts/test.sh [pytest arguments]
set -euo pipefail
if [[ ${1:-} == -h || ${1:-} == --help ]]; then sed -n '2,4s/^# //p' "$0"; exit 0; fi
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib/lanes.sh
. scripts/lib/lanes.sh
reports=.busco/reports
rm -rf "$reports"
status=0
# tests of dbt's environment that run in Airflow's lane, so that both lanes take about the same time
also=(tests/integration/test_baked_parse.py tests/integration/test_replay.py tests/integration/test_two_projects.py)

# shellcheck disable=SC2329  # called by lane
beside() {
    local status=0
    .venv/bin/python -m pytest --junitxml "$reports/airflow.xml" tests/airflow "$@" || status=1
    .venv-dbt/bin/python -m pytest --junitxml "$reports/dbt-also.xml" "${also[@]}" "$@" || status=1
    return "$status"
}

lane "tests/airflow ${also[*]}" beside "$@"
timed "tests/unit, tests/integration" .venv-dbt/bin/python -m pytest --junitxml "$reports/dbt.xml" \
    tests/unit tests/integration "${also[@]/#/--ignore=}" "$@" || status=$?
wait_for_lanes || status=1
scripts/slowest.py
echo "left out: tests with containers (make test-stack), long fault matrices (make test-long)"
if [[ -z ${OLIST_DIR:-} ]]; then echo "left out: tests on real data (OLIST_DIR is not set: the folder of Olist's CSV files)"; fi
exit "$status"
