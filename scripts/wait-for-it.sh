#!/usr/bin/env bash
# Waits until something is listening on each HOST:PORT, then runs the command after `--`, if any.
# usage: scripts/wait-for-it.sh [-t SECONDS] HOST:PORT... [-- COMMAND...]
#   -t SECONDS   how long to wait for all of them together (default 60) before exiting with status 124
set -euo pipefail
usage() { sed -n '2,4s/^# //p' "$0"; }
limit=60
places=()
while (($#)); do
    case $1 in
        -h | --help) usage; exit 0 ;;
        -t) limit=${2:?-t needs a number of seconds}; shift 2 ;;
        --) shift; break ;;
        -*) usage >&2; exit 2 ;;
        *) places+=("$1"); shift ;;
    esac
done
if ((${#places[@]} == 0)); then usage >&2; exit 2; fi
for place in "${places[@]}"; do
    host=${place%:*} port=${place##*:}
    if [[ $place != *:* || -z $host || ! $port =~ ^[0-9]+$ ]]; then
        echo "wait-for-it: $place is not HOST:PORT" >&2
        exit 2
    fi
    # shellcheck disable=SC2016
    until timeout 2 bash -c 'exec 3<>"/dev/tcp/$0/$1"' "$host" "$port" 2>/dev/null; do
        if ((SECONDS >= limit)); then
            echo "wait-for-it: nothing is listening on $place after $limit s: is it running, and is the address right?" >&2
            exit 124
        fi
        sleep 0.5
    done
done
if (($#)); then exec "$@"; fi
