#!/usr/bin/env bash
# Reports which tools required for setup are missing, and how to install them.
# usage: scripts/check_tools.sh [PYTHON]
set -euo pipefail
if [[ ${1:-} == -h || ${1:-} == --help ]]; then sed -n '2,3s/^# //p' "$0"; exit 0; fi
python=${1:-}
missing=()
if [[ -z $python ]] || ! "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
    missing+=("Python 3.11 (apt install python3.11, or make PYTHON=/path/to/python3.11)")
elif ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
    missing+=("Python's venv module (apt install python3.11-venv)")
fi
command -v git >/dev/null || missing+=("git (apt install git)")
if ((${#missing[@]})); then
    printf 'missing: %s\n' "${missing[@]}" >&2
    exit 1
fi
