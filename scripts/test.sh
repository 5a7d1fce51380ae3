#!/usr/bin/env bash
# Tests without Docker, each in the environment that it is about, the two at once; arguments go to pytest.
# usage: scripts/test.sh [pytest arguments]
set -euo pipefail
if [[ ${1:-} == -h || ${1:-} == --help ]]; then sed -n '2,3s/^# //p' "$0"; exit 0; fi
cd "$(dirname "$0")/.."
status=0
log=$(mktemp)
# what a suite starts (servers, Airflow) ends with it: an interrupted one is told, too
trap 'kill "$airflow" 2>/dev/null || true; wait "$airflow" 2>/dev/null || true; rm -f "$log"' EXIT
# so many of dbt's that both take the same time
also=(tests/integration/test_baked_parse.py tests/integration/test_replay.py)
echo "tests/airflow and ${also[*]} run beside these, and are shown after them"
(
    run() { "$@" & child=$!; wait "$child" || status=$?; }
    trap 'kill "$child"; wait "$child"; exit 143' TERM
    run .venv/bin/python -m pytest tests/airflow "$@"
    run .venv-dbt/bin/python -m pytest "${also[@]}" "$@"
    exit "$status"
) >"$log" 2>&1 &
airflow=$!
.venv-dbt/bin/python -m pytest tests/unit tests/integration "${also[@]/#/--ignore=}" "$@" || status=$?
wait "$airflow" || status=$?
cat "$log"
echo "left out: tests with containers (make test-stack), long fault matrices (make test-long)"
if [[ -z ${OLIST_DIR:-} ]]; then echo "left out: tests on real data (OLIST_DIR is unset: the folder of Olist's CSV files)"; fi
exit "$status"
