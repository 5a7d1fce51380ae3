#!/usr/bin/env bash
# Installs, on the production host and as root, what keeps the platform running: the units in deploy/aws/systemd, cron's
# jobs in /etc/cron.d/busco, and the commands busco-host, busco-backup and busco-restore. Safe to run again.
# usage: scripts/setup_systemd.sh [--dry-run] [--remove]
#   --dry-run   only print what would change
#   --remove    remove all of it again; the services keep running
set -euo pipefail
usage() { sed -n '2,6s/^# \{0,1\}//p' "$0"; }
cd "$(dirname "$(readlink -f "$0")")/.."
# shellcheck source=scripts/lib/host.sh
. scripts/lib/host.sh
dry=
remove=
for option in "$@"; do
    case $option in
        -h | --help) usage; exit 0 ;;
        --dry-run) dry=1 ;;
        --remove) remove=1 ;;
        *) usage >&2; exit 2 ;;
    esac
done
if [[ -z $dry ]]; then require_root; fi
units=(busco.service busco-firewall.service busco-check.service busco-check.timer)
# in /usr/sbin, because sudo on Amazon Linux finds nothing in /usr/local
declare -A commands=([busco-host]=host.sh [busco-backup]=backup.sh [busco-restore]=restore.sh)
if [[ -n $remove ]]; then
    if [[ -n $dry ]]; then
        say "would remove ${units[*]}, /etc/cron.d/busco and ${!commands[*]}"
        exit 0
    fi
    systemctl disable --quiet "${units[@]}" 2>/dev/null || true
    systemctl stop busco-check.timer 2>/dev/null || true
    rm -f "${units[@]/#//etc/systemd/system/}" /etc/cron.d/busco /etc/logrotate.d/busco "${!commands[@]/#//usr/sbin/}"
    systemctl daemon-reload
    say "removed"
    exit 0
fi
changed=0
put() {
    local from=$1 to=$2
    if cmp -s "$from" "$to"; then return; fi
    say "$to"
    changed=1
    if [[ -z $dry ]]; then install -m 644 "$from" "$to"; fi
}
for unit in "${units[@]}"; do put "deploy/aws/systemd/$unit" "/etc/systemd/system/$unit"; done
put deploy/aws/systemd/busco.cron /etc/cron.d/busco
put deploy/aws/systemd/busco.logrotate /etc/logrotate.d/busco
if [[ -n $dry ]]; then exit 0; fi
for command in "${!commands[@]}"; do ln -sfn "$busco/current/scripts/${commands[$command]}" "/usr/sbin/$command"; done
install -d -m 700 "$logs"
if ((changed)); then systemctl daemon-reload; fi
systemctl enable --quiet "${units[@]}"
systemctl start busco-check.timer
# the services are running already; this only makes the unit active, so that it stops them in order at a shutdown
systemctl start --no-block busco.service
