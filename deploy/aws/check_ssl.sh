#!/usr/bin/env bash
# Checks the certificate that a server presents: its chain, its host name and the days that are left. Exits with 0 if all
# is well, 1 if not, and 2 on wrong usage.
# usage: deploy/aws/check_ssl.sh [--days N] [--port N] [--connect ADDRESS] [--ca FILE] HOST
#   --days N            fail if fewer days are left (default 21; certbot renews when 30 days are left)
#   --port N            default 443
#   --connect ADDRESS   connect to this address instead of the host's own
#   --ca FILE           trust the authorities in this file instead of the system's
set -euo pipefail
usage() { sed -n '2,8s/^# //p' "$0"; }
days=21
port=443
address=
trust=()
while (($#)); do
    case $1 in
        -h | --help) usage; exit 0 ;;
        --days) days=${2:?--days needs a number}; shift 2 ;;
        --port) port=${2:?--port needs a number}; shift 2 ;;
        --connect) address=${2:?--connect needs an address}; shift 2 ;;
        --ca) trust=(-CAfile "${2:?--ca needs a file}" -no-CApath); shift 2 ;;
        -*) usage >&2; exit 2 ;;
        *) break ;;
    esac
done
if (($# != 1)); then usage >&2; exit 2; fi
host=$1
failed=0
fail() { printf '%s: %s\n' "$host" "$*" >&2; failed=1; }
answer=$(timeout 20 openssl s_client -connect "${address:-$host}:$port" -servername "$host" -verify_hostname "$host" \
    -showcerts ${trust[@]+"${trust[@]}"} </dev/null 2>&1) || true
certificate=$(openssl x509 2>/dev/null <<<"$answer") || {
    fail "no certificate from ${address:-$host}:$port: $(grep -m1 -iE 'errno|error|refused' <<<"$answer" || echo 'no answer')"
    exit 1
}
verified=$(sed -n 's/^ *Verify return code: //p; s/^Verification error: /error: /p' <<<"$answer" | head -n 1)
if [[ $verified != 0* ]]; then fail "the certificate is not valid for this host: $verified"; fi
end=$(openssl x509 -noout -enddate <<<"$certificate" | cut -d = -f 2)
left=$((($(date -u -d "$end" +%s) - $(date -u +%s)) / 86400))
if ((left < days)); then
    fail "the certificate expires in $left days ($end): is the renewal running? See /var/log/busco/renew.log on the host"
fi
if ((failed)); then exit 1; fi
printf '%s: valid for %s more days (%s), %s\n' "$host" "$left" "$end" "$(openssl x509 -noout -issuer <<<"$certificate")"
