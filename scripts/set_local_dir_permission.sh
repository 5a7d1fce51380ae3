#!/usr/bin/env bash
# Makes the folders that Docker Compose mounts readable by the containers' users and owned and writable by AIRFLOW_UID
# (from .env, or else your user). Needed only if you work on them as root or have copied them from another machine.
# usage: scripts/set_local_dir_permission.sh [FOLDER...]     default: dags, plugins, config, src, dbt_project, deploy
set -euo pipefail
if [[ ${1:-} == -h || ${1:-} == --help ]]; then sed -n '2,4s/^# //p' "$0"; exit 0; fi
cd "$(dirname "$0")/.."
uid=${AIRFLOW_UID:-}
# shellcheck source=scripts/lib/env.sh
. scripts/lib/env.sh
if [[ -z $uid && -f .env ]]; then
    uid=$(env_get AIRFLOW_UID)
    if [[ ! $uid =~ ^[0-9]+$ ]]; then uid=; fi
fi
uid=${uid:-$(id -u)}
if (($# == 0)); then set -- dags plugins config src dbt_project deploy; fi
for folder in "$@"; do
    mkdir -p "$folder"
    wrong=$(find "$folder" ! -uid "$uid" -print -quit)
    if [[ -n $wrong ]]; then
        if [[ $(id -u) != 0 ]]; then
            echo "$wrong doesn't belong to user $uid, and only root can change that: sudo $0" >&2
            exit 1
        fi
        chown -R "$uid" "$folder"
        echo "$folder: now owned by user $uid"
    fi
    chmod -R u+rwX,go+rX "$folder"
done
