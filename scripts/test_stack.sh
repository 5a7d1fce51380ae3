#!/usr/bin/env bash
# Tests with real containers: the image, the local ECS, and the DAG on it. Without Docker they are left out, with a word.
# The image is built first, unless BUSCO_DBT_IMAGE names one. Arguments go to pytest.
# usage: scripts/test_stack.sh [pytest arguments]
set -euo pipefail
if [[ ${1:-} == -h || ${1:-} == --help ]]; then sed -n '2,4s/^# //p' "$0"; exit 0; fi
cd "$(dirname "$0")/.."
if ! docker version >/dev/null 2>&1; then
    echo "left out: tests with containers (Docker can't be reached)"
    exit 0
fi
if [[ -z ${BUSCO_DBT_IMAGE:-} ]]; then scripts/build_image.sh; fi
status=0
.venv-dbt/bin/python -m pytest tests/stack "$@" || status=$?
.venv/bin/python -m pytest tests/ecs "$@" || status=$?
echo "left out: long fault matrices, real data in every way to run (make test-long)"
exit "$status"
