#!/usr/bin/env bash
# Runs the tests that don't need Docker, each in the Python environment that it needs, in two parallel lanes. Arguments
# go to pytest. Lists the slowest tests at the end and writes the results to .busco/reports as JUnit files.
# usage: scripts/test.sh [--all] [pytest arguments]
#   --all   also runs the tests that are marked slow
set -euo pipefail
if [[ ${1:-} == -h || ${1:-} == --help ]]; then sed -n '2,5s/^# //p' "$0"; exit 0; fi
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib/lanes.sh
. scripts/lib/lanes.sh
reports=.busco/reports
rm -rf "$reports"
status=0
# tests of dbt's environment that run in Airflow's lane, so that both lanes take about the same time
also=(
    test_baked_parse test_command test_foreign test_hidden_values test_ingest test_limits test_project_ids test_replay
    test_two_projects
)
if [[ ${1:-} == --all ]]; then
    shift
    chosen="not long"
else
    # most of the slow tests are Airflow's, so without them, Airflow's lane has room for more tests
    also+=(test_doctor test_local_aws_roles test_local_s3)
    chosen="not long and not slow"
fi
also=("${also[@]/#/tests/integration/}")
also=("${also[@]/%/.py}")
set -- -m "$chosen" "$@"

# shellcheck disable=SC2329  # called by lane
beside() {
    local status=0
    .venv/bin/python -m pytest --junitxml "$reports/airflow.xml" tests/airflow "$@" || status=1
    .venv-dbt/bin/python -m pytest --junitxml "$reports/dbt-also.xml" "${also[@]}" "$@" || status=1
    return "$status"
}

lane "tests/airflow, part of tests/integration" beside "$@"
timed "tests/unit, the rest of tests/integration" .venv-dbt/bin/python -m pytest --junitxml "$reports/dbt.xml" \
    tests/unit tests/integration "${also[@]/#/--ignore=}" "$@" || status=$?
wait_for_lanes || status=1
scripts/slowest.py
if [[ $chosen == *slow ]]; then echo "left out: tests marked slow (make test ALL=1, make test-long)"; fi
echo "left out: tests with containers (make test-stack), long fault matrices (make test-long)"
if [[ -z ${OLIST_DIR:-} ]]; then
    echo "left out: tests on real data (to run them, set OLIST_DIR to the folder of Olist's CSV files)"
fi
exit "$status"
