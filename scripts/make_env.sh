#!/usr/bin/env bash
# Makes .env from .env.example, with fresh random keys and passwords and this machine's user and Docker group, mode 600.
# One that is there keeps all that it has; what .env.example has got since is added.
# usage: scripts/make_env.sh
set -euo pipefail
if [[ ${1:-} == -h || ${1:-} == --help ]]; then sed -n '2,4s/^# //p' "$0"; exit 0; fi
cd "$(dirname "$0")/.."
umask 077
scratch=$(mktemp .env.XXXXXX)
trap 'rm -f "$scratch"' EXIT
# without the line ends of Windows, and with one at its end
# and without the keys of earlier versions, which local-aws does not know
if [[ -f .env ]]; then
    tr -d '\r' <.env | awk '!/^AWS_(ACCESS_KEY_ID|SECRET_ACCESS_KEY)=busco-local$/' >"$scratch"
fi
secret() { od -An -tx1 -N24 /dev/urandom | tr -d ' \n'; }
socket=${DOCKER_HOST:-unix:///var/run/docker.sock}
socket=${socket#unix://}
added=0
while IFS= read -r line; do
    if [[ $line =~ ^([A-Z][A-Z0-9_]*)=(.*)$ ]]; then
        name=${BASH_REMATCH[1]} value=${BASH_REMATCH[2]}
        if grep -q "^$name=" "$scratch"; then continue; fi
        case $value in
            '<random>') value=$(secret) ;;
            '<fernet>') value=$(head -c 32 /dev/urandom | base64 | tr '+/' '-_') ;;
            # never root: its files are read by anybody
            '<user>') value=$(id -u); if ((value == 0)); then value=50000; fi ;;
            # another checkout on the same machine has other containers and volumes
            '<project>') value=busco-$(pwd -P | cksum | cut -d ' ' -f 1) ;;
            '<docker-group>') value=$(stat -c %g "$socket" 2>/dev/null || echo 0) ;;
        esac
        line=$name=$value
        added=$((added + 1))
    elif [[ -f .env ]]; then
        continue
    fi
    printf '%s\n' "$line" >>"$scratch"
done <.env.example
chmod 600 "$scratch"
mv "$scratch" .env
if ((added)); then echo "wrote $added variables to .env"; fi
