#!/usr/bin/env bash
# Backs up Airflow's database on the production host, as root: to /var/backups/busco, where the newest three are kept, and
# to airflow-database/ in the logs bucket. The backup is restored into a temporary PostgreSQL first; one that can't be
# restored is an error, and is not stored. Prints the backup's name. Cron runs this each night.
# usage: busco-backup [--quiet] [--alert] [--dry-run]
#   --quiet     print only the name
#   --alert     send an alert if the backup fails
#   --dry-run   only print what would be done
set -euo pipefail
usage() { sed -n '2,8s/^# \{0,1\}//p' "$0"; }
cd "$(dirname "$(readlink -f "$0")")/.."
# shellcheck source=scripts/lib/env.sh
. scripts/lib/env.sh
# shellcheck source=scripts/lib/host.sh
. scripts/lib/host.sh
# shellcheck source=scripts/lib/postgres.sh
. scripts/lib/postgres.sh
quiet=
on_failure=
dry=
for option in "$@"; do
    case $option in
        -h | --help) usage; exit 0 ;;
        --quiet) quiet=1 ;;
        --alert) on_failure=1 ;;
        --dry-run) dry=1 ;;
        *) usage >&2; exit 2 ;;
    esac
done
require_root
note() { if [[ -z $quiet ]]; then say "$@" >&2; fi; }
if [[ -n $on_failure ]]; then
    # the messages go to cron's log, and to the alert
    failures=$(mktemp)
    status=0
    "$0" 2>"$failures" || status=$?
    cat "$failures" >&2
    if ((status)); then alert "the backup of Airflow's database failed" <"$failures"; fi
    rm -f "$failures"
    exit "$status"
fi
if [[ -n $dry ]]; then
    say "would back up the database $(env_get DB_NAME) on $(env_get DB_HOST) to $backups and to the logs bucket"
    exit 0
fi
lock backup
check_env
install -d -m 700 "$backups"
# of backups that failed or were killed
rm -f "$backups"/*.part
open_postgres
contents=$(python_in_airflow -m busco.orchestration.backups contents)
# the first key; names that people have chosen follow
revision=$(sed -n 's/^{"revision": *"\([a-z0-9]*\)".*/\1/p' <<<"$contents")
if [[ -z $revision ]]; then die "the database's revision can't be read"; fi
name=$(date -u +%Y%m%dT%H%M%SZ)-$revision
dump=$backups/$name.dump
note "==> dump"
postgres pg_dump --format custom --compress 6 --no-owner --no-privileges >"$dump.part"
note "==> restore it into a temporary database"
verify "$dump.part" "$revision"
note "==> store it in the logs bucket"
python_in_airflow -m busco.orchestration.backups put "$name.dump" <"$dump.part"
python_in_airflow -m busco.orchestration.backups put "$name.json" <<<"$contents"
printf '%s\n' "$contents" >"$backups/$name.json"
mv "$dump.part" "$dump"
find "$backups" -name '*.dump' -printf '%f\n' | sort -r | tail -n +4 | while read -r old; do
    rm -f "${backups:?}/$old" "${backups:?}/${old%.dump}.json"
done
say "$name"
