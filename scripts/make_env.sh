#!/usr/bin/env bash
# Creates .env from .env.example, with fresh random keys and passwords and this machine's user and Docker group, mode 600.
# An existing .env keeps its values, except that placeholders (<random>, <user>, …) are filled in and variables that are
# new in .env.example are added.
# usage: scripts/make_env.sh [--fill]
#   --fill   only fill in the placeholders in an existing .env
set -euo pipefail
if [[ ${1:-} == -h || ${1:-} == --help ]]; then sed -n '2,6s/^# //p' "$0"; exit 0; fi
fill=${1:-}
if [[ -n $fill && $fill != --fill ]]; then sed -n '5,6s/^# //p' "$0" >&2; exit 2; fi
cd "$(dirname "$0")/.."
umask 077
scratch=$(mktemp .env.XXXXXX)
trap 'rm -f "$scratch"' EXIT
secret() { od -An -tx1 -N24 /dev/urandom | tr -d ' \n'; }
socket=${DOCKER_HOST:-unix:///var/run/docker.sock}
socket=${socket#unix://}
# Prints the value for a placeholder in .env.example, or any other text unchanged.
filled() {
    case $1 in
        '<random>') secret ;;
        '<fernet>') head -c 32 /dev/urandom | base64 | tr '+/' '-_' | tr -d '\n' ;;
        # never root; Airflow's user only needs to read root's files
        '<user>') if (($(id -u) == 0)); then printf 50000; else id -u | tr -d '\n'; fi ;;
        # each checkout on a machine has its own containers and volumes
        '<project>') printf 'busco-%s' "$(pwd -P | cksum | cut -d ' ' -f 1)" ;;
        '<docker-group>') printf '%s' "$(stat -c %g "$socket" 2>/dev/null || echo 0)" ;;
        *) printf '%s' "$1" ;;
    esac
}
added=0
replaced=0
if [[ -f .env ]]; then
    # also handles Windows line endings and a missing line ending at the end of the file
    while IFS= read -r line || [[ -n $line ]]; do
        end=
        if [[ $line == *$'\r' ]]; then end=${fill:+$'\r'} line=${line%$'\r'}; fi
        # drop the keys of earlier versions, which local-aws doesn't accept
        if [[ -z $fill && $line =~ ^AWS_(ACCESS_KEY_ID|SECRET_ACCESS_KEY)=busco-local$ ]]; then continue; fi
        if [[ $line =~ ^([A-Z][A-Z0-9_]*)=(\<[a-z-]+\>)$ ]]; then
            value=$(filled "${BASH_REMATCH[2]}")
            if [[ $value != "${BASH_REMATCH[2]}" ]]; then replaced=$((replaced + 1)); fi
            line=${BASH_REMATCH[1]}=$value
        fi
        printf '%s%s\n' "$line" "$end" >>"$scratch"
    done <.env
    if [[ -n $fill ]] && ((replaced == 0)); then exit 0; fi
elif [[ -n $fill ]]; then
    exit 0
fi
while [[ -z $fill ]] && IFS= read -r line; do
    if [[ $line =~ ^([A-Z][A-Z0-9_]*)=(.*)$ ]]; then
        if grep -q "^${BASH_REMATCH[1]}=" "$scratch"; then continue; fi
        line=${BASH_REMATCH[1]}=$(filled "${BASH_REMATCH[2]}")
        added=$((added + 1))
    elif [[ -f .env ]]; then
        continue
    fi
    printf '%s\n' "$line" >>"$scratch"
done <.env.example
# leave the file alone if nothing has changed
if [[ -f .env ]] && cmp -s "$scratch" .env; then
    chmod 600 .env
    exit 0
fi
chmod 600 "$scratch"
mv "$scratch" .env
if ((replaced)); then echo "filled in $replaced placeholders in .env"; fi
if ((added)); then echo "wrote $added variables to .env"; fi
