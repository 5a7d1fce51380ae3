#!/usr/bin/env bash
# Tests with real containers: the images, the local ECS, the DAG on it, the platform in Docker Compose with a browser.
# Without Docker they are left out, with a word. The images are built first, unless BUSCO_DBT_IMAGE names dbt's: then all
# of them are taken as they are. Arguments go to pytest.
# usage: scripts/test_stack.sh [pytest arguments]
#   BUSCO_SCREENSHOTS   where pictures of the pages are kept (default .busco/screenshots)
set -euo pipefail
if [[ ${1:-} == -h || ${1:-} == --help ]]; then sed -n '2,6s/^# //p' "$0"; exit 0; fi
cd "$(dirname "$0")/.."
if ! docker version >/dev/null 2>&1; then
    echo "left out: tests with containers (Docker can't be reached)"
    exit 0
fi
if [[ -z ${BUSCO_DBT_IMAGE:-} ]]; then scripts/local_build.sh; fi
status=0
.venv-dbt/bin/python -m pytest tests/stack "$@" || status=$?
.venv/bin/python -m pytest tests/ecs "$@" || status=$?
.venv-dbt/bin/python -m pytest tests/compose "$@" || status=$?
echo "left out: long fault matrices, real data in every way to run (make test-long)"
exit "$status"
