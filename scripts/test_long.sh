#!/usr/bin/env bash
# Runs the tests that are marked long or slow; those with containers need Docker. Arguments go to pytest.
# usage: OLIST_DIR=<folder of Olist's CSV files> scripts/test_long.sh [pytest arguments]
set -euo pipefail
if [[ ${1:-} == -h || ${1:-} == --help ]]; then sed -n '2,3s/^# //p' "$0"; exit 0; fi
cd "$(dirname "$0")/.."
status=0
.venv/bin/python -m pytest -m "long or slow" tests/airflow "$@" || status=$?
.venv-dbt/bin/python -m pytest -m "long or slow" tests/unit tests/integration "$@" || status=$?
.venv-dbt/bin/python -m pytest -m "long or slow" tests/engines "$@" || status=$?
if ! docker version >/dev/null 2>&1; then
    echo "left out: tests with containers (Docker can't be reached)"
    exit "$status"
fi
if [[ -z ${BUSCO_DBT_IMAGE:-} ]]; then scripts/local_build.sh dbt local-aws airflow nginx certbot; fi
.venv/bin/python -m pytest -m "long or slow" tests/ecs "$@" || status=$?
.venv-dbt/bin/python -m pytest -m "long or slow" tests/compose "$@" || status=$?
.venv-dbt/bin/python -m pytest -m "long or slow" tests/production "$@" || status=$?
if [[ -z ${BUSCO_RESTART_DOCKER:-} ]]; then
    echo "left out: a restart of Docker's engine (to test it, set BUSCO_RESTART_DOCKER to a command that restarts it)"
fi
if [[ -z ${BUSCO_TEST_EC2_HOST:-} ]]; then
    echo "left out: deployments (to test them, set BUSCO_TEST_EC2_HOST to a program that starts a host: tests/production/host.py)"
fi
if [[ -z ${OLIST_DIR:-} ]]; then
    echo "left out: tests on real data (to run them, set OLIST_DIR to the folder of Olist's CSV files)"
fi
exit "$status"
