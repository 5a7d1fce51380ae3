#!/usr/bin/env bash
# Tests without Docker, each in the environment that it is about; arguments go to pytest.
# usage: scripts/test.sh [pytest arguments]
set -euo pipefail
if [[ ${1:-} == -h || ${1:-} == --help ]]; then sed -n '2,3s/^# //p' "$0"; exit 0; fi
cd "$(dirname "$0")/.."
status=0
.venv-dbt/bin/python -m pytest tests/unit tests/integration "$@" || status=$?
.venv/bin/python -m pytest tests/airflow "$@" || status=$?
echo "left out: tests with containers (make test-stack), long fault matrices (make test-long)"
if [[ -z ${OLIST_DIR:-} ]]; then echo "left out: tests on real data (OLIST_DIR is unset: the folder of Olist's CSV files)"; fi
exit "$status"
