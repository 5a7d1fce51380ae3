#!/usr/bin/env bash
# Builds the images of production and pushes them to the repositories that .env names: DBT_IMAGE, AIRFLOW_IMAGE, NGINX_IMAGE
# and CERTBOT_IMAGE, and the public images of Redis and PostgreSQL as REDIS_IMAGE and POSTGRES_IMAGE, so that the host
# pulls everything from one registry. The local AWS is never pushed. A tag is never overwritten: an image that the
# registry already has is skipped.
# usage: scripts/ecr_push.sh [--platform PLATFORM] [--dry-run] [dev|prod]      default: prod
#   prod                  tags are commits (those of nginx and certbot: that changed them last); refuses uncommitted changes
#   dev                   tags are dev-<commit>, and with uncommitted changes dev-<commit>-<UTC>
#   --platform PLATFORM   linux/amd64 or linux/arm64, the platform of the host and of the ECS tasks; default: that of
#                         BUSCO_ECS_CPU_ARCHITECTURE in .env
#   --dry-run             only print what would be pushed
set -euo pipefail
usage() { sed -n '2,11s/^# //p' "$0"; }
kind=prod
dry=
platform=
while (($#)); do
    case $1 in
        -h | --help) usage; exit 0 ;;
        --platform) platform=${2:?--platform needs a platform}; shift 2 ;;
        --dry-run) dry=1; shift ;;
        dev | prod) kind=$1; shift ;;
        *) usage >&2; exit 2 ;;
    esac
done
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib/env.sh
. scripts/lib/env.sh
# shellcheck source=scripts/lib/images.sh
. scripts/lib/images.sh
check_env
if [[ -z $platform ]]; then
    case $(env_get BUSCO_ECS_CPU_ARCHITECTURE) in
        X86_64) platform=linux/amd64 ;;
        ARM64) platform=linux/arm64 ;;
        *) echo "BUSCO_ECS_CPU_ARCHITECTURE in .env must be X86_64 or ARM64" >&2; exit 1 ;;
    esac
fi
commit=$(git rev-parse --short=12 HEAD)
changes=$(git status --porcelain)
local_tag=$commit${changes:+-dirty}
tag=$commit
if [[ $kind == dev ]]; then
    tag=dev-$commit${changes:+-$(date -u +%Y%m%dT%H%M%S)}
elif [[ -n $changes ]]; then
    printf 'there are uncommitted changes, so no commit describes the images:\n%s\ncommit them, or push a trial version: %s dev\n' \
        "$changes" "$0" >&2
    exit 1
fi
images=(dbt airflow nginx certbot)
declare -A target
for image in "${images[@]}"; do
    name=${image^^}_IMAGE
    target[$image]=$(env_get "$name")
    if [[ -z ${target[$image]} || ${target[$image]} == *:* && ${target[$image]##*/} == *:* ]]; then
        echo "$name in .env must name a repository without a tag: <account>.dkr.ecr.<region>.amazonaws.com/busco-$image" >&2
        exit 1
    fi
done
declare -A copies
for name in redis postgres; do
    public=$(used_images | grep "^$name:")
    copy=$(env_get "${name^^}_IMAGE")
    if [[ ${copy##*/} != *:* ]]; then
        echo "${name^^}_IMAGE in .env must name a repository with a tag: <account>.dkr.ecr.<region>.amazonaws.com/busco-$public" >&2
        exit 1
    fi
    copies[$public]=$copy
done
for image in "${images[@]}"; do target[$image]+=:$(release_tag "$image" "$tag"); done
if [[ -n $dry ]]; then
    for image in "${images[@]}"; do echo "would push ${target[$image]}"; done
    for public in "${!copies[@]}"; do echo "would push ${copies[$public]} (the public $public)"; done
    exit 0
fi
# log_in REGISTRY: a login to ECR lasts 12 hours; other registries are logged in to by the user
log_in() {
    local region
    if [[ $1 =~ \.dkr\.ecr\.([a-z0-9-]+)\.amazonaws\.com ]]; then
        region=${BASH_REMATCH[1]}
        aws ecr get-login-password --region "$region" | docker login --username AWS --password-stdin "$1" >/dev/null
    fi
}
mapfile -t registries < <(printf '%s\n' "${target[@]}" "${copies[@]}" | cut -d / -f 1 | sort -u)
for registry in "${registries[@]}"; do log_in "$registry"; done
has() { docker manifest inspect ${insecure[@]+"${insecure[@]}"} "$1" >/dev/null 2>&1; }
# a registry on this machine, for tests, has no TLS
insecure=()
if [[ ${registries[0]} =~ ^(localhost|127\.|172\.|10\.) ]]; then insecure=(--insecure); fi
push() {
    local from=$1 to=$2
    if has "$to"; then
        echo "$to already exists"
        return
    fi
    docker tag "$from" "$to"
    docker push --quiet "$to"
}
wanted=()
for image in "${images[@]}"; do
    if ! has "${target[$image]}"; then wanted+=("$image"); fi
done
if ((${#wanted[@]})); then scripts/local_build.sh --platform "$platform" "${wanted[@]}"; fi
for image in "${images[@]}"; do push "busco-$image:$local_tag" "${target[$image]}"; done
for public in "${!copies[@]}"; do
    if has "${copies[$public]}"; then continue; fi
    from=$(locked "$public")
    # an image that was pulled earlier may be for another platform
    if [[ $(docker image inspect --format '{{.Os}}/{{.Architecture}}' "$from" 2>/dev/null) != "$platform" ]]; then
        docker pull --quiet --platform "$platform" "$from"
    fi
    push "$from" "${copies[$public]}"
done
version=
if [[ $kind == dev ]]; then version="--version $tag "; fi
# the stacks' repository is <Name>-dbt
repository=$(env_get DBT_IMAGE)
repository=${repository##*/}
name=
if [[ $repository == *-dbt && $repository != busco-dbt ]]; then name=" --name ${repository%-dbt}"; fi
printf 'deploy it: scripts/ec2_deploy.sh %s<ec2-host>\n' "$version"
printf 'then let new ECS tasks run the same commit: deploy/aws/deploy.sh%s --models-image %s\n' "$name" "${target[dbt]}"
