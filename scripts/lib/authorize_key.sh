#!/bin/sh
# Runs as root on the production host: lets a key log in for some minutes, removes temporary keys whose time has passed,
# and prints the user and the host's public keys.
# arguments: MINUTES PUBLIC-KEY USER…     the key's comment is busco-temporary; of the users, the first that exists counts
set -eu
minutes=$1
key=$2
shift 2
found=
for user in "$@"; do
    if home=$(getent passwd "$user" | cut -d : -f 6) && [ -n "$home" ]; then
        found=$user
        break
    fi
done
if [ -z "$found" ]; then
    echo "this machine has none of the users $*" >&2
    exit 1
fi
group=$(id -gn "$found")
install -d -m 700 -o "$found" -g "$group" "$home/.ssh"
keys=$home/.ssh/authorized_keys
# sshd compares with the time in the machine's own time zone, as date prints it (sshd(8), expiry-time)
now=$(date +%Y%m%d%H%M)
until=$(date --date "$minutes minutes" +%Y%m%d%H%M)
new=$(mktemp "$home/.ssh/authorized_keys.XXXXXX")
if [ -e "$keys" ]; then
    awk -v now="$now" '
        / busco-temporary$/ && match($0, /^restrict,pty,expiry-time="[0-9]+"/) {
            if (substr($0, RSTART + 26, 12) < now) next
        }
        { print }' "$keys" >"$new"
fi
printf 'restrict,pty,expiry-time="%s" %s\n' "$until" "$key" >>"$new"
chown "$found:$group" "$new"
mv "$new" "$keys"
echo "user $found"
for file in /etc/ssh/ssh_host_*_key.pub; do
    if [ ! -e "$file" ]; then continue; fi
    sed 's/^/host key /; s/^\(host key [^ ]* [^ ]*\).*/\1/' "$file"
done
