#!/usr/bin/env bash
# Runs all checks that don't need a running platform; each reports its own findings.
# usage: scripts/lint.sh
set -euo pipefail
if [[ ${1:-} == -h || ${1:-} == --help ]]; then sed -n '2,3s/^# //p' "$0"; exit 0; fi
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib/lanes.sh
. scripts/lib/lanes.sh
bin=.venv-dbt/bin
failed=0
check() { timed "$@" || failed=1; }
# mypy needs the imported libraries, so it runs once per environment, on the files whose imports are installed there
airflow_only='^src/busco/(orchestration/|embedded/(airflow|postgres|demo)|cli/(events|metrics|platform)|doctor/airflow)'
dbt_only='^src/busco/(warehouse|ingest)/|^src/busco/lake/(engine|credentials|export|reading|versions|types|iceberg_io|manifests|remake|scrub)|'
dbt_only+='^src/busco/cli/(data|docs|export|local_aws|replay|scrub)|'
dbt_only+='^src/busco/doctor/dbt|^src/busco/embedded/(aws|local_aws|stacks|athena|s3_|sample)'
mapfile -t dbt_side < <(git ls-files 'src/*.py' | grep -vE "$airflow_only")
mapfile -t airflow_side < <(git ls-files 'src/*.py' | grep -vE "$dbt_only")
mapfile -t shell < <(git ls-files '*.sh' '.ci/*')
# the two slowest checks (mypy) run in parallel: this one in the background
lane "mypy (dbt's environment)" "$bin/mypy" --no-error-summary --cache-dir .mypy_cache/dbt "${dbt_side[@]}"
check ruff "$bin/ruff" check --quiet .
check "ruff format" "$bin/ruff" format --quiet --check .
check "mypy (Airflow's environment)" "$bin/mypy" --no-error-summary --cache-dir .mypy_cache/airflow \
    --python-executable .venv/bin/python "${airflow_side[@]}"
check import-linter "$bin/lint-imports" --no-cache
check sqlfluff "$bin/sqlfluff" lint --disable-progress-bar --processes 2 dbt_project/models dbt_project/tests
check shellcheck "$bin/shellcheck" "${shell[@]}"
check hadolint "$bin/hadolint" Dockerfile.*
check cfn-lint "$bin/cfn-lint" deploy/aws/*.yaml
check zizmor "$bin/zizmor" --offline --quiet --no-progress .github/workflows
wait_for_lanes || failed=1
if ((failed)); then
    echo "lint: FAILED; see the findings above" >&2
    exit 1
fi
