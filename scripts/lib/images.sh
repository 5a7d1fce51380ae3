# shellcheck shell=bash
# Resolves third-party images to their digests in images.lock (scripts/lock_images.sh), or to their tags if there is no
# such file. Source this from the repository's root.

# locked IMAGE: `python:3.11-slim-bookworm` → `python:3.11-slim-bookworm@sha256:…`;
# prints IMAGE unchanged if there is no images.lock
locked() {
    local image=$1 found=
    if [[ -f images.lock ]]; then
        found=$(awk -v image="$image" '$1 == image { print $2 }' images.lock)
        if [[ ! $found =~ ^sha256:[0-9a-f]{64}$ ]]; then
            echo "images.lock has no digest for $image; update it: scripts/lock_images.sh" >&2
            return 1
        fi
        image+=@$found
    fi
    printf '%s\n' "$image"
}

# used_images: the images that Dockerfiles build on and the Compose files start, without duplicates
used_images() {
    {
        sed -nE 's/^ARG (PYTHON|NGINX|CERTBOT)_IMAGE=//p' Dockerfile.*
        sed -nE 's/^ *image: (\$\{[A-Z_]+:-)?([a-z]+:[^}]+)\}?$/\2/p' docker-compose*.yml
    } | sort -u
}

# release_tag IMAGE TAG: the tag of one of our images in the release TAG, which is a commit or a trial version. nginx and
# certbot have the commit that changed them last, so that most deployments leave them running; a trial version has its
# own images.
release_tag() {
    local paths=("Dockerfile.$1" images.lock) folder=$1
    if [[ $1 == certbot ]]; then folder=letsencrypt; fi
    case $1-$2 in
        *-dev-* | dbt-* | airflow-*) printf '%s\n' "$2" ;;
        *) git log --max-count 1 --format=%h --abbrev=12 "$2" -- "${paths[@]}" "deploy/$folder" ;;
    esac
}
