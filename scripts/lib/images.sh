# shellcheck shell=bash
# Resolves third-party images to their digests in images.lock (scripts/lock_images.sh), or to their tags without the file.
# Source this from the repository's root.

# locked IMAGE: `python:3.11-slim-bookworm` → `python:3.11-slim-bookworm@sha256:…`; prints it unchanged without images.lock
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

# used_images: the images that Dockerfiles build on and docker-compose.yml starts, without duplicates
used_images() {
    {
        sed -n 's/^ARG PYTHON_IMAGE=//p' Dockerfile.*
        sed -nE 's/^ *image: (\$\{[A-Z_]+:-)?([a-z]+:[^}]+)\}?$/\2/p' docker-compose.yml
    } | sort -u
}
