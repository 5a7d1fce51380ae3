#!/usr/bin/env bash
# Tests with real containers, in two lanes: the images, the local ECS and the DAG on it; the platform in Docker Compose
# with a browser. Without Docker they are left out, with a message. The images are built first, unless BUSCO_DBT_IMAGE
# names dbt's: then all of them are taken as they are. Arguments go to pytest. The slowest tests are listed at the end;
# .busco/reports-stack has the results as JUnit files.
# usage: scripts/test_stack.sh [pytest arguments]
#   BUSCO_SCREENSHOTS   where pictures of the pages are kept (default .busco/screenshots)
set -euo pipefail
if [[ ${1:-} == -h || ${1:-} == --help ]]; then sed -n '2,8s/^# //p' "$0"; exit 0; fi
cd "$(dirname "$0")/.."
if ! docker version >/dev/null 2>&1; then
    echo "left out: tests with containers (Docker can't be reached)"
    exit 0
fi
# shellcheck source=scripts/lib/lanes.sh
. scripts/lib/lanes.sh
if [[ -z ${BUSCO_DBT_IMAGE:-} ]]; then timed images scripts/local_build.sh; fi
reports=.busco/reports-stack
rm -rf "$reports"
status=0
lane "tests/compose" .venv-dbt/bin/python -m pytest --junitxml "$reports/compose.xml" tests/compose "$@"
timed "tests/stack" .venv-dbt/bin/python -m pytest --junitxml "$reports/stack.xml" tests/stack "$@" || status=1
timed "tests/ecs" .venv/bin/python -m pytest --junitxml "$reports/ecs.xml" tests/ecs "$@" || status=1
wait_for_lanes || status=1
scripts/slowest.py "$reports"
echo "left out: long fault matrices, real data in every way to run (make test-long)"
exit "$status"
