#!/usr/bin/env bash
# Uploads sample data, or the files in a folder, to the landing bucket of the Docker Compose platform, which starts a run
# of the `lakehouse` DAG, and waits until the files are ingested.
# usage: scripts/first_data.sh [ORDERS | FOLDER]     default 100000
set -euo pipefail
if [[ ${1:-} == -h || ${1:-} == --help ]]; then sed -n '2,4s/^# //p' "$0"; exit 0; fi
cd "$(dirname "$0")/.."
what=${1:-100000}
folder=/var/lib/busco/incoming
inside() { docker compose exec -T local-aws "$@"; }
# chmod first: copies of files that are read-only on the host are read-only too
tidy() { inside sh -c "if test -e $folder; then chmod -R u+rwX $folder && rm -rf $folder; fi"; }
tidy
if [[ -d $what ]]; then
    # the copies belong to the container's user, whatever the owners and permissions of the files on the host
    tar -C "$what" -cf - . | inside sh -c "mkdir -p $folder && tar --no-same-owner --no-same-permissions -xf - -C $folder"
else
    inside busco sample --orders "$what" --out "$folder"
fi
inside busco put --until ingested "$folder"
tidy
