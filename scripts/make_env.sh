#!/usr/bin/env bash
# Creates .env from .env.example, with fresh random keys and passwords and this machine's user and Docker group, mode 600.
# An existing .env keeps its values, except that placeholders (<random>, <user>, …) are filled in and variables that are
# new in .env.example are added. If there is a placeholder that can't be filled in, nothing is changed.
# usage: scripts/make_env.sh [--fill | --production [--outputs FILE]...]
#   --fill        only fill in the placeholders in an existing .env
#   --production  create .env for docker-compose.prod.yml instead, from .env.production.example: values come from --outputs
#                 (JSON of `aws cloudformation describe-stacks` or `terraform output -json`), or are asked for
set -euo pipefail
if [[ ${1:-} == -h || ${1:-} == --help ]]; then sed -n '2,8s/^# //p' "$0"; exit 0; fi
fill=${1:-}
if [[ $fill == --production ]]; then exec python3 "$(dirname "$0")/production_env.py" "${@:2}"; fi
if [[ -n $fill && $fill != --fill ]]; then sed -n '5,8s/^# //p' "$0" >&2; exit 2; fi
cd "$(dirname "$0")/.."
# shellcheck source=scripts/lib/env.sh
. scripts/lib/env.sh
umask 077
# if .env is a link, write to its target
target=.env
if [[ -L .env ]] && ! target=$(readlink -f .env); then
    echo ".env is a link to $(readlink .env), whose folder doesn't exist; create the folder, or remove the link" >&2
    exit 1
fi
if [[ -n $fill && ! -f $target ]]; then exit 0; fi
scratch=$(mktemp "${target%"${target##*/}"}.env.XXXXXX")
trap 'rm -f "$scratch"' EXIT
placeholder='<(random|fernet|user|project|docker-group)>'
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
number=0
refused=0
names=' '
if [[ -f $target ]]; then
    # also handles Windows line endings and a missing line ending at the end of the file
    while IFS= read -r line || [[ -n $line ]]; do
        number=$((number + 1))
        end=
        unread=$line
        if [[ $line == *$'\r' ]]; then end=${fill:+$'\r'} line=${line%$'\r'}; fi
        if env_line "$line"; then
            # drop the AWS keys that earlier versions wrote: local-aws doesn't accept them
            if [[ -z $fill && $env_name =~ ^AWS_(ACCESS_KEY_ID|SECRET_ACCESS_KEY)$ && $env_value == busco-local ]]; then
                continue
            fi
            names+="$env_name "
            value=$(filled "$env_value")
            if [[ $value != "$env_value" ]]; then replaced=$((replaced + 1)); fi
            line=$env_before$value$env_after
            unread=$value
        elif [[ $line =~ ^[[:space:]]*# ]]; then
            unread=
        fi
        if [[ $unread =~ $placeholder ]]; then
            printf ".env, line %s: can't fill in %s, because it is not the whole value; write %s=%s, or a value of your own\n" \
                "$number" "${BASH_REMATCH[0]}" "${env_name:-NAME}" "${BASH_REMATCH[0]}" >&2
            refused=1
        fi
        printf '%s%s\n' "$line" "$end" >>"$scratch"
    done <"$target"
    if ((refused)); then exit 1; fi
    if [[ -n $fill ]] && ((replaced == 0)); then exit 0; fi
fi
while [[ -z $fill ]] && IFS= read -r line; do
    if [[ $line =~ ^([A-Z][A-Z0-9_]*)=(.*)$ ]]; then
        if [[ $names == *" ${BASH_REMATCH[1]} "* ]]; then continue; fi
        line=${BASH_REMATCH[1]}=$(filled "${BASH_REMATCH[2]}")
        added=$((added + 1))
    elif [[ -f $target ]]; then
        continue
    fi
    printf '%s\n' "$line" >>"$scratch"
done <.env.example
# leave the file alone if nothing has changed
if [[ -f $target ]] && cmp -s "$scratch" "$target"; then
    chmod 600 "$target"
    exit 0
fi
chmod 600 "$scratch"
mv "$scratch" "$target"
# counted NUMBER NOUN: `1 variable`, `2 variables`
counted() { printf '%s %s' "$1" "$2$( (($1 == 1)) || echo s)"; }
if ((replaced)); then echo "filled in $(counted "$replaced" placeholder) in .env"; fi
if ((added)); then echo "wrote $(counted "$added" variable) to .env"; fi
