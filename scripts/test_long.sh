#!/usr/bin/env bash
# Runs the slow tests; each part can also be run by itself. Those with containers need Docker. Arguments go to pytest.
# usage: OLIST_DIR=<folder of Olist's CSV files> scripts/test_long.sh [pytest arguments]
set -euo pipefail
if [[ ${1:-} == -h || ${1:-} == --help ]]; then sed -n '2,3s/^# //p' "$0"; exit 0; fi
cd "$(dirname "$0")/.."
status=0
.venv/bin/python -m pytest -m long tests/airflow "$@" || status=$?
.venv-dbt/bin/python -m pytest -m long tests/integration "$@" || status=$?
if ! docker version >/dev/null 2>&1; then
    echo "left out: tests with containers (Docker can't be reached)"
    exit "$status"
fi
if [[ -z ${BUSCO_DBT_IMAGE:-} ]]; then scripts/local_build.sh; fi
.venv/bin/python -m pytest -m long tests/ecs "$@" || status=$?
.venv-dbt/bin/python -m pytest -m long tests/compose "$@" || status=$?
if [[ -z ${BUSCO_RESTART_DOCKER:-} ]]; then
    echo "left out: a restart of Docker's engine (BUSCO_RESTART_DOCKER is not set: the command that restarts it)"
fi
if [[ -z ${OLIST_DIR:-} ]]; then echo "left out: real data (OLIST_DIR is not set: the folder of Olist's CSV files)"; fi
exit "$status"
