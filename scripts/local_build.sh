#!/usr/bin/env bash
# Builds the images, tags each as <name>:<commit> and <name>:local, and prints their sizes:
#   busco-dbt (a runner), busco-local-aws (the local AWS in Docker Compose), busco-airflow (Airflow's services)
#   busco-nginx, busco-certbot (HTTPS in production)
# Placeholders (<random>, <user>, …) in an existing .env are filled in; nothing else in it changes.
# <commit> ends in `-dirty` if there are uncommitted changes. Docker's own variables select the engine.
# usage: scripts/local_build.sh [--platform PLATFORM] [dbt|local-aws|airflow|nginx|certbot]...
#   default               the images of the development stack: dbt, local-aws, airflow
#   --platform PLATFORM   target platform, as Docker writes it (linux/amd64, linux/arm64); default: this machine's
set -euo pipefail
usage() { sed -n '2,9s/^# //p' "$0"; }
options=()
images=()
while (($#)); do
    case $1 in
        -h | --help) usage; exit 0 ;;
        --platform) options+=(--platform "${2:?--platform needs a platform}"); shift 2 ;;
        dbt | local-aws | airflow | nginx | certbot) images+=("$1"); shift ;;
        *) usage >&2; exit 2 ;;
    esac
done
if ((${#images[@]} == 0)); then images=(dbt local-aws airflow); fi
cd "$(dirname "$0")/.."
# fill in the placeholders, so that a plain copy of .env.example works
scripts/make_env.sh --fill
version=$(git rev-parse --short=12 HEAD)
if [[ -n $(git status --porcelain) ]]; then version+=+; fi
commit=${version/+/-dirty}
# shellcheck source=scripts/lib/images.sh
. scripts/lib/images.sh
# based_on VARIABLE DOCKERFILE: sets $base to the public image, and $from to the same one with its digest, if it is locked
based_on() {
    base=$(sed -n "s/^ARG $1=//p" "$2")
    from=$(locked "$base")
    based=()
    if [[ $from != "$base" ]]; then based=(--build-arg "$1=$from"); fi
}
log=$(mktemp)
trap 'rm -f "$log"' EXIT
size() { docker image inspect --format '{{.Size}}' "$1" 2>/dev/null || echo 0; }
build() {
    local name=$1 began=$SECONDS
    shift
    printf 'building %s\n' "$name:$commit"
    if ! DOCKER_BUILDKIT=1 docker build --progress plain ${options[@]+"${options[@]}"} \
        ${based[@]+"${based[@]}"} --build-arg "CODE_VERSION=$version" \
        --tag "$name:$commit" --tag "$name:local" "$@" . >"$log" 2>&1; then
        tail -40 "$log" >&2
        echo "building $name failed; see the output above" >&2
        exit 1
    fi
    printf '%s, %s: %s MB on top of %s, built in %s s\n' "$name:$commit" "$name:local" \
        $((($(size "$name:$commit") - $(size "$from")) / 1000000)) "$base" $((SECONDS - began))
}
for image in "${images[@]}"; do
    based_on PYTHON_IMAGE Dockerfile.dbt
    case $image in
        nginx | certbot)
            based_on "$(tr '[:lower:]' '[:upper:]' <<<"$image")_IMAGE" "Dockerfile.$image"
            build "busco-$image" --file "Dockerfile.$image" ;;
        dbt) build busco-dbt --file Dockerfile.dbt --target runner ;;
        local-aws) build busco-local-aws --file Dockerfile.dbt --target local ;;
        airflow)
            # Airflow's graph is copied from dbt's image of the same commit, where it is baked in
            if [[ -z $(docker image ls --quiet "busco-dbt:$commit") ]]; then
                build busco-dbt --file Dockerfile.dbt --target runner
            fi
            build busco-airflow --file Dockerfile.airflow --build-arg "DBT_IMAGE=busco-dbt:$commit" ;;
    esac
done
