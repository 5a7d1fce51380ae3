# shellcheck shell=bash
# Images of others by the digest that images.lock has of them (scripts/lock_images.sh); by their tag where it is not there.
# To be sourced, from the repository's root.

# locked IMAGE: `python:3.11-slim-bookworm` → `python:3.11-slim-bookworm@sha256:…`, or the same again
locked() {
    local image=$1 found=
    if [[ -f images.lock ]]; then
        found=$(awk -v image="$image" '$1 == image { print $2 }' images.lock)
        if [[ ! $found =~ ^sha256:[0-9a-f]{64}$ ]]; then
            echo "images.lock has no digest of $image: scripts/lock_images.sh makes it anew" >&2
            return 1
        fi
        image+=@$found
    fi
    printf '%s\n' "$image"
}

# used_images: those that Dockerfiles build on and docker-compose.yml starts, each once
used_images() {
    {
        sed -n 's/^ARG PYTHON_IMAGE=//p' Dockerfile.*
        sed -nE 's/^ *image: (\$\{[A-Z_]+:-)?([a-z]+:[^}]+)\}?$/\2/p' docker-compose.yml
    } | sort -u
}
