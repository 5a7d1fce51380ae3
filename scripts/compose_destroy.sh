#!/usr/bin/env bash
# Asks for confirmation, then stops the Docker Compose platform and deletes its volumes (lake, Airflow's history, logs).
# usage: scripts/compose_destroy.sh [--yes]
set -euo pipefail
if [[ ${1:-} == -h || ${1:-} == --help ]]; then sed -n '2,3s/^# //p' "$0"; exit 0; fi
cd "$(dirname "$0")/.."
if [[ ${1:-} != --yes ]]; then
    read -r -p 'delete the lake, the database and all logs of the Docker Compose platform? [y/N] ' answer || true
    if [[ ! $answer =~ ^[yY]$ ]]; then echo "nothing was deleted"; exit 1; fi
fi
rm -f .busco/first-data.begun
docker compose down --volumes --remove-orphans
