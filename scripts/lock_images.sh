#!/usr/bin/env bash
# Asks the registry for the digest of each image of others that is built on or started, and writes images.lock: from then on
# builds and `make up` use exactly these. Without the file they use the tags. Where the registry does not answer, nothing is
# written: a digest is never guessed.
# usage: scripts/lock_images.sh
set -euo pipefail
if [[ ${1:-} == -h || ${1:-} == --help ]]; then sed -n '2,5s/^# //p' "$0"; exit 0; fi
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib/images.sh
. scripts/lib/images.sh
lock=$(mktemp images.lock.XXXXXX)
trap 'rm -f "$lock"' EXIT
for image in $(used_images); do
    echo "asking for $image"
    # the digest of the list for all processors, not of this machine's image
    if ! digest=$(docker buildx imagetools inspect --format '{{.Manifest.Digest}}' "$image"); then
        echo "the registry has no answer for $image: images.lock is as it was" >&2
        exit 1
    fi
    if [[ ! $digest =~ ^sha256:[0-9a-f]{64}$ ]]; then
        echo "the registry's answer for $image is no digest: ${digest:0:100}" >&2
        exit 1
    fi
    printf '%s %s\n' "$image" "$digest" >>"$lock"
done
chmod 644 "$lock"
mv "$lock" images.lock
trap - EXIT
echo "images.lock has $(wc -l <images.lock) digests: commit it, and look at requirements/reviewed.toml, [[images]]"
