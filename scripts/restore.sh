#!/usr/bin/env bash
# Restores Airflow's database from a backup on the production host, as root: stops Airflow, replaces all of its tables in
# one transaction, and starts Airflow again. A restore that fails or is interrupted changes nothing. The present database
# is backed up first. Releases and tables in the lake are not touched.
# usage: busco-restore [--yes] [--no-start] [--dry-run] BACKUP | latest
#        busco-restore --list | --newer BACKUP | --newest REVISION
#   --yes               don't ask, and don't back up the present database
#   --no-start          leave Airflow stopped
#   --dry-run           only verify the backup, by restoring it into a temporary database
#   --list              print the names of the backups, the newest first; a name has the time in UTC and the revision
#   --newer BACKUP      print how much the database has that the backup lacks
#   --newest REVISION   print the newest backup of a database at this revision
set -euo pipefail
usage() { sed -n '2,14s/^# \{0,1\}//p' "$0"; }
cd "$(dirname "$(readlink -f "$0")")/.."
# shellcheck source=scripts/lib/env.sh
. scripts/lib/env.sh
# shellcheck source=scripts/lib/host.sh
. scripts/lib/host.sh
# shellcheck source=scripts/lib/postgres.sh
. scripts/lib/postgres.sh
yes=
start=1
dry=
name=
action=restore
while (($#)); do
    case $1 in
        -h | --help) usage; exit 0 ;;
        --yes) yes=1 ;;
        --no-start) start= ;;
        --dry-run) dry=1 ;;
        --list) action=list ;;
        --newer | --newest) action=${1#--} name=${2:?"$1 needs a name"}; shift ;;
        -*) usage >&2; exit 2 ;;
        *) name=$1 ;;
    esac
    shift
done
require_root
stored() { python_in_airflow -m busco.orchestration.backups list; }
# fetch FILE: a file of a backup, from this host or from the logs bucket, in $backups
fetch() {
    install -d -m 700 "$backups"
    if [[ ! -s $backups/$1 ]]; then
        local scratch=$backups/fetched
        rm -rf "$scratch"
        install -d -m 700 "$scratch"
        from_airflow "$scratch" "$1" get "$1"
        mv "$scratch/$1" "$backups/$1"
        rm -rf "$scratch"
    fi
}
newer() {
    fetch "$1.json"
    python_in_airflow -m busco.orchestration.backups newer <"$backups/$1.json"
}
case $action in
    list) stored; exit ;;
    newest) stored | grep -m1 -- "-$name\$" || true; exit ;;
    newer) newer "$name"; exit ;;
esac
if [[ -z $name ]]; then usage >&2; exit 2; fi
lock "restore of $name"
check_env
if [[ $name == latest ]]; then name=$(stored | head -n 1); fi
if [[ -z $name ]]; then die "there is no backup in the logs bucket"; fi
open_postgres
fetch "$name.dump"
fetch "$name.json"
revision=${name##*-}
verify "$backups/$name.dump" "$revision"
say "the backup $name can be restored"
if [[ -n $dry ]]; then exit 0; fi
newest=$(python_in_airflow -m busco.orchestration.revision --newest)
if [[ -n $start && $newest != "$revision" ]]; then
    die "the backup is of a database at revision $revision, but the Airflow of this release needs $newest" \
        "restore a backup of that revision (--list), or deploy the release of the backup and run this again"
fi
if [[ -z $yes ]]; then
    if [[ $(python_in_airflow -m busco.orchestration.revision) != empty ]]; then
        say "the database has what this backup lacks: $(newer "$name")"
        if [[ ! -t 0 ]]; then die "nothing was changed; to restore without being asked, use --yes"; fi
        read -r -p "replace the database $(env_get DB_NAME) on $(env_get DB_HOST)? Type yes: " answer
        if [[ $answer != yes ]]; then die "nothing was changed"; fi
        scripts/backup.sh
    fi
fi
# on_exit: starts Airflow again after a failure
on_exit() {
    local status=$?
    close_postgres
    if ((status)) && [[ -n $start && -z $restored ]]; then
        say "==> the restore failed and has changed nothing; start Airflow again"
        scripts/host.sh start >/dev/null 2>&1 || say "Airflow did not start; see: busco-host status"
    fi
    exit "$status"
}
trap on_exit EXIT
signals_are_failures
restored=
say "==> stop Airflow"
compose stop "${airflow_services[@]}" >/dev/null 2>&1
say "==> restore"
replace_database "$backups/$name.dump"
restored=1
say "restored $name"
if [[ -n $start ]]; then
    say "==> start Airflow"
    scripts/host.sh start >/dev/null 2>&1 || die "Airflow did not start; see: busco-host status"
fi
