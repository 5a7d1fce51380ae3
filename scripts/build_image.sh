#!/usr/bin/env bash
# Builds the image of a runner (Dockerfile.dbt) as busco-dbt:<commit> and busco-dbt:local, and says how large it is.
# The commit has `-dirty` behind it where files differ from it. Docker's own variables say which engine.
# usage: scripts/build_image.sh
set -euo pipefail
if [[ ${1:-} == -h || ${1:-} == --help ]]; then sed -n '2,4s/^# //p' "$0"; exit 0; fi
cd "$(dirname "$0")/.."
version=$(git rev-parse --short=12 HEAD)
if [[ -n $(git status --porcelain) ]]; then version+=+; fi
tag=busco-dbt:${version/+/-dirty}
base=$(sed -n 's/^ARG PYTHON_IMAGE=//p' Dockerfile.dbt)
printf 'building %s\n' "$tag"
DOCKER_BUILDKIT=1 docker build --quiet --file Dockerfile.dbt --build-arg "CODE_VERSION=$version" \
    --tag "$tag" --tag busco-dbt:local . >/dev/null
size() { docker image inspect --format '{{.Size}}' "$1" 2>/dev/null || echo 0; }
printf '%s, busco-dbt:local: %s MB beyond %s\n' "$tag" $((($(size "$tag") - $(size "$base")) / 1000000)) "$base"
