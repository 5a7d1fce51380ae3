#!/usr/bin/env bash
# What a container of Airflow's image begins with: waits for database and broker, then becomes the command.
# `init` brings the database up to date, keeps roles, and makes the first admin; nothing else migrates.
# usage: scripts/entrypoint.sh init | airflow COMMAND… | python -m MODULE | COMMAND…
#   AIRFLOW_WAIT_SECONDS   how long to wait for database and broker (default 120)
set -euo pipefail
if [[ ${1:-} == -h || ${1:-} == --help ]]; then sed -n '2,5s/^# //p' "$0"; exit 0; fi
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

# HOST:PORT of the URL in the variable $1; $2 is the port where it names none. Never an argument: it has a password.
place() {
    python - "$1" "$2" <<'PYTHON'
import os
import sys
from urllib.parse import urlsplit

try:
    url = urlsplit(os.environ.get(sys.argv[1], ""))
    print(f"{url.hostname}:{url.port or sys.argv[2]}" if url.hostname else "")
except ValueError:
    sys.exit(f"{sys.argv[1]} is no URL: is something but letters, digits, - and _ in its password?")
PYTHON
}

# behind a proxy that ends TLS its X-Forwarded headers count, and the session's cookie is sent over https alone
if [[ ${AIRFLOW_BEHIND_PROXY:-} =~ ^([Tt]rue|1|yes)$ ]]; then
    export AIRFLOW__WEBSERVER__ENABLE_PROXY_FIX=True AIRFLOW__WEBSERVER__COOKIE_SECURE=True
fi

# without a bucket for them task logs stay where they are written
if [[ -z ${AIRFLOW__LOGGING__REMOTE_BASE_LOG_FOLDER:-} ]]; then
    if [[ -n ${BUSCO_LOGS_BUCKET:-} ]]; then
        export AIRFLOW__LOGGING__REMOTE_BASE_LOG_FOLDER=s3://$BUSCO_LOGS_BUCKET/airflow
    else
        export AIRFLOW__LOGGING__REMOTE_LOGGING=False
    fi
fi

wanted=()
database=$(place AIRFLOW__DATABASE__SQL_ALCHEMY_CONN 5432)
if [[ -n $database ]]; then wanted+=("$database"); fi
if [[ ${AIRFLOW__CORE__EXECUTOR:-CeleryExecutor} == CeleryExecutor ]]; then
    broker=$(place AIRFLOW__CELERY__BROKER_URL 6379)
    if [[ -n $broker ]]; then wanted+=("$broker"); fi
fi
case ${1:-} in
    init | airflow | python)
        if ((${#wanted[@]})); then "$here/wait-for-it.sh" -t "${AIRFLOW_WAIT_SECONDS:-120}" "${wanted[@]}"; fi ;;
esac

if [[ ${1:-} != init ]]; then
    # in its place, so that signals are the command's own: SIGTERM is Celery's warm shutdown
    exec "$@"
fi
python -m busco.orchestration.access
python "$here/setup_connections.py"
