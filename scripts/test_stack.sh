#!/usr/bin/env bash
# Tests with real containers, in dbt's environment; arguments go to pytest. Without Docker they are left out.
# usage: scripts/test_stack.sh [pytest arguments]
set -euo pipefail
if [[ ${1:-} == -h || ${1:-} == --help ]]; then sed -n '2,3s/^# //p' "$0"; exit 0; fi
cd "$(dirname "$0")/.."
.venv-dbt/bin/python -m pytest tests/stack "$@"
