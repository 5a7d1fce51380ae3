#!/usr/bin/env bash
# Starts the whole platform in Docker Compose: creates .env, builds the images, starts all services and, the first time,
# loads sample data into the lake in the background. Safe to run twice.
# usage: scripts/compose_up.sh
#   DATA         a folder of files to load first instead of the sample
#   ORDERS       number of orders in the sample (default 100000; 0: no data)
#   BUSCO_BUILD  0 starts the existing images without building
set -euo pipefail
if [[ ${1:-} == -h || ${1:-} == --help ]]; then sed -n '2,7s/^# //p' "$0"; exit 0; fi
first=${DATA:-${ORDERS:-100000}}
if [[ -n ${DATA:-} ]]; then
    if [[ ! -d $DATA ]]; then echo "DATA is $DATA, which is not a folder" >&2; exit 2; fi
    first=$(cd "$DATA" && pwd)
fi
cd "$(dirname "$0")/.."
if ! docker compose version >/dev/null 2>&1; then
    echo "Docker with Compose v2 is not available; to see why, run: docker compose version" >&2
    exit 1
fi
scripts/make_env.sh
# skip hidden files, such as editors' swap files, which can have any permissions because no container reads them
closed=$(find dags plugins config deploy src dbt_project ! -name '.*' \( -type d ! -perm -005 -o -type f ! -perm -004 \) -print -quit)
if [[ -n $closed ]]; then
    echo "$closed is not readable by the containers' users; fix its permissions: scripts/set_local_dir_permission.sh" >&2
    exit 1
fi
if [[ ${BUSCO_BUILD:-1} != 0 ]]; then scripts/local_build.sh; fi
# shellcheck source=scripts/lib/images.sh
. scripts/lib/images.sh
if [[ -f images.lock ]]; then
    for image in $(used_images); do
        case $image in
            postgres:*) POSTGRES_IMAGE=$(locked "$image") ;;
            redis:*) REDIS_IMAGE=$(locked "$image") ;;
        esac
    done
    export POSTGRES_IMAGE REDIS_IMAGE
fi
if ! docker compose up --detach --wait --wait-timeout 300; then
    while read -r service state health code; do
        case "$state $health $code" in
            "running healthy"* | created* | "exited - 0") ;;
            *) printf '\n%s is %s; the end of its log:\n' "$service" "$state"
               docker compose logs --no-log-prefix --tail 15 "$service" ;;
        esac
    done < <(docker compose ps --all --format '{{.Service}} {{.State}} {{or .Health "-"}} {{.ExitCode}}') >&2
    exit 1
fi
# shellcheck source=scripts/lib/env.sh
. scripts/lib/env.sh
# contains the pid of the process that loads the initial data, and what it loads; the file is removed after success
begun=.busco/first-data.begun
if [[ -f $begun ]] && kill -0 "$(sed -n 1p $begun)" 2>/dev/null; then
    echo "the initial data is still being loaded; log: .busco/log/first-data.log"
elif [[ $first != 0 ]]; then
    if [[ -f $begun ]]; then
        # if DATA or ORDERS is set now, it overrides the earlier choice
        if [[ -z ${DATA:-}${ORDERS:-} ]]; then first=$(sed -n 2p $begun); fi
        printf 'loading the initial data failed and is starting over; the end of the log:\n%s\n' \
            "$(tail -n 3 .busco/log/first-data.log 2>/dev/null)"
    # data is loaded only if the lake is still empty
    elif docker compose exec -T local-aws busco aws filled; then
        first=0
    fi
    if [[ $first != 0 ]]; then
        mkdir -p .busco/log
        chmod 700 .busco .busco/log
        # shellcheck disable=SC2016
        nohup bash -c 'scripts/first_data.sh "$1" && rm -f "$2"' - "$first" $begun >.busco/log/first-data.log 2>&1 </dev/null &
        printf '%s\n' $! "$first" >$begun
        echo "loading the initial data and starting the first run in the background; log: .busco/log/first-data.log"
    fi
fi
printf 'Airflow    http://127.0.0.1:%s   (user %s, password: AIRFLOW_ADMIN_PASSWORD in .env)\n' \
    "$(env_get AIRFLOW_PORT)" "$(env_get AIRFLOW_ADMIN_USERNAME)"
printf 'Flower     http://127.0.0.1:%s   (the same login)\n' "$(env_get FLOWER_PORT)"
printf 'local AWS  http://127.0.0.1:%s\n' "$(env_get BUSCO_AWS_PORT)"
