#!/usr/bin/env bash
# Runs the tests with real containers in two parallel lanes: the images, the local ECS and the DAG on it, and the
# production stack; and the Docker Compose platform with a browser. Without Docker, prints a message and skips them.
# Builds the images first, unless BUSCO_DBT_IMAGE names dbt's image: then the existing images are used. Arguments go to
# pytest. Lists the slowest tests at the end and writes the results to .busco/reports-stack as JUnit files.
# usage: scripts/test_stack.sh [pytest arguments]
#   BUSCO_SCREENSHOTS   folder for screenshots of the pages (default .busco/screenshots)
set -euo pipefail
if [[ ${1:-} == -h || ${1:-} == --help ]]; then sed -n '2,8s/^# //p' "$0"; exit 0; fi
cd "$(dirname "$0")/.."
if ! docker version >/dev/null 2>&1; then
    echo "left out: tests with containers (Docker can't be reached)"
    exit 0
fi
# shellcheck source=scripts/lib/lanes.sh
. scripts/lib/lanes.sh
if [[ -z ${BUSCO_DBT_IMAGE:-} ]]; then timed images scripts/local_build.sh dbt local-aws airflow nginx certbot; fi
reports=.busco/reports-stack
rm -rf "$reports"
status=0
lane "tests/compose" .venv-dbt/bin/python -m pytest --junitxml "$reports/compose.xml" tests/compose \
    --ignore tests/compose/test_images.py "$@"
timed "tests/stack, images" .venv-dbt/bin/python -m pytest --junitxml "$reports/stack.xml" tests/stack \
    tests/compose/test_images.py "$@" || status=1
timed "tests/production" .venv-dbt/bin/python -m pytest --junitxml "$reports/production.xml" tests/production "$@" ||
    status=1
timed "tests/ecs" .venv/bin/python -m pytest --junitxml "$reports/ecs.xml" tests/ecs "$@" || status=1
wait_for_lanes || status=1
scripts/slowest.py "$reports"
echo "left out: long fault matrices, real data in every execution mode (make test-long)"
exit "$status"
