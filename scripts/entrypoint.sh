#!/usr/bin/env bash
# Entry point of the Airflow image: waits for the database and the broker, then runs the command.
# `init` migrates the database, updates the roles and creates the first admin; no other command migrates it.
# usage: scripts/entrypoint.sh init | airflow COMMAND… | python -m MODULE | COMMAND…
#   BUSCO_REQUIRES         in production, the variables without which the container refuses to start
#   AIRFLOW_WAIT_SECONDS   how long to wait for the database and the broker (default 120)
set -euo pipefail
if [[ ${1:-} == -h || ${1:-} == --help ]]; then sed -n '2,6s/^# //p' "$0"; exit 0; fi
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

# in production, refuse to start without a secret, with a well-known one, or with settings for a local AWS
if [[ -n ${BUSCO_REQUIRES:-} ]]; then python -m busco.orchestration.production; fi

# in production, an empty folder in memory is mounted over the state folder
baked=${BUSCO_HOME:-}/baked/manifest.json
if [[ -f $baked && ! -e $BUSCO_STATE_DIR/manifest.json ]]; then cp "$baked" "$BUSCO_STATE_DIR/"; fi

# Prints HOST:PORT of the URL in the variable named $1, with $2 as the default port. Accepts the variable's name, not
# the URL, because the URL contains a password, and arguments are visible to other users.
place() {
    python - "$1" "$2" <<'PYTHON'
import os
import sys
from urllib.parse import urlsplit

try:
    url = urlsplit(os.environ.get(sys.argv[1], ""))
    print(f"{url.hostname}:{url.port or sys.argv[2]}" if url.hostname else "")
except ValueError:
    sys.exit(f"{sys.argv[1]} is not a valid URL: does its password contain anything but letters, digits, - and _?")
PYTHON
}

# behind a proxy that terminates TLS, trust its X-Forwarded headers and send the session cookie over HTTPS only
if [[ ${AIRFLOW_BEHIND_PROXY:-} =~ ^([Tt]rue|1|yes)$ ]]; then
    export AIRFLOW__WEBSERVER__ENABLE_PROXY_FIX=True AIRFLOW__WEBSERVER__COOKIE_SECURE=True
fi

# without a logs bucket, task logs stay in the container's own files
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
    broker=${AIRFLOW__CELERY__BROKER_URL_CMD:+redis:6379}
    if [[ -n ${AIRFLOW__CELERY__BROKER_URL:-} ]]; then broker=$(place AIRFLOW__CELERY__BROKER_URL 6379); fi
    if [[ -n $broker ]]; then wanted+=("$broker"); fi
fi
case ${1:-} in
    init | airflow | python)
        if ((${#wanted[@]})); then "$here/wait-for-it.sh" -t "${AIRFLOW_WAIT_SECONDS:-120}" "${wanted[@]}"; fi ;;
esac

if [[ ${1:-} != init ]]; then
    # exec, so that the command itself receives signals: Celery does a warm shutdown on SIGTERM
    exec "$@"
fi
python -m busco.orchestration.access
python "$here/setup_connections.py"
