#!/usr/bin/env bash
# Runs the tests that read and change the lake with other engines. Each part is skipped with a message if the variable
# that names its engine is not set; docs/contributing.md shows how to start the engines. Arguments go to pytest.
# usage: scripts/test_engines.sh [--all] [pytest arguments]
#   --all   also runs the tests that are marked long: Spark, a second S3 server, further changes by Trino
#        eval "$(scripts/test_engines.sh env)"     start the local AWS of these tests, and point a shell's engines at it
#        scripts/test_engines.sh stop              stop that local AWS
#   BUSCO_TEST_TRINO   URL of a Trino whose catalog awsdatacatalog is tests/engines/trino.properties
#   BUSCO_TEST_SPARK   command that runs a Python script whose Spark session has the catalog `lake`
#   BUSCO_TEST_S3      URL of a second, empty S3 server that accepts the keys that `env` prints
set -euo pipefail
if [[ ${1:-} == -h || ${1:-} == --help ]]; then sed -n '2,11s/^# //p' "$0"; exit 0; fi
cd "$(dirname "$0")/.."
case ${1:-} in
    env | stop) exec .venv-dbt/bin/python -m tests.engines.server "$1" ;;
esac
chosen="not long"
if [[ ${1:-} == --all ]]; then
    shift
    chosen="long or not long"
fi
reports=.busco/reports-engines
rm -rf "$reports"
status=0
.venv-dbt/bin/python -m pytest --junitxml "$reports/engines.xml" -m "$chosen" tests/engines "$@" || status=$?
scripts/slowest.py "$reports"
if [[ $chosen == not* ]]; then echo "left out: tests marked long (make test-engines ALL=1)"; fi
exit "$status"
