#!/usr/bin/env bash
# Looks up the digests of all third-party images that our images are based on or that Docker Compose starts, and writes
# them to images.lock. From then on, builds and `make up` use exactly these images; without the file, they use the tags.
# If the registry doesn't respond, nothing is written: a digest is never guessed.
# usage: scripts/lock_images.sh
set -euo pipefail
if [[ ${1:-} == -h || ${1:-} == --help ]]; then sed -n '2,5s/^# //p' "$0"; exit 0; fi
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib/images.sh
. scripts/lib/images.sh
lock=$(mktemp images.lock.XXXXXX)
trap 'rm -f "$lock"' EXIT
for image in $(used_images); do
    echo "looking up $image"
    # the digest of the multi-platform index, not of this machine's image
    if ! digest=$(docker buildx imagetools inspect --format '{{.Manifest.Digest}}' "$image"); then
        echo "the registry returned no digest for $image; images.lock is unchanged" >&2
        exit 1
    fi
    if [[ ! $digest =~ ^sha256:[0-9a-f]{64}$ ]]; then
        echo "the registry returned an invalid digest for $image: ${digest:0:100}" >&2
        exit 1
    fi
    printf '%s %s\n' "$image" "$digest" >>"$lock"
done
chmod 644 "$lock"
mv "$lock" images.lock
trap - EXIT
echo "images.lock has $(wc -l <images.lock) digests: commit it, and review [[images]] in requirements/reviewed.toml"
