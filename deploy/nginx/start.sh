#!/bin/sh
# Starts nginx for the host name in BUSCO_DOMAIN, and reloads it whenever the letsencrypt service has switched to
# another certificate. Runs in the image that Dockerfile.nginx builds, with BusyBox's or Debian's sh.
set -eu
here=/opt/busco
current=/etc/nginx/certificates/current
config=/tmp/nginx.conf
case ${BUSCO_DOMAIN:-} in
    '' | *[!a-z0-9.-]*) echo "BUSCO_DOMAIN is not a host name in lower case; set it in .env" >&2; exit 1 ;;
esac

# Browsers remember Strict-Transport-Security, so a self-signed certificate must not be served with it.
render() {
    hsts='add_header Strict-Transport-Security "max-age=31536000" always;'
    case $1 in
        *-self-signed)
            hsts=
            echo "serving a self-signed certificate: browsers will warn, until letsencrypt has obtained one" >&2 ;;
    esac
    sed -e "s/@DOMAIN@/$BUSCO_DOMAIN/g" -e "s/@HSTS@/$hsts/" "$here/nginx.conf" >"$config"
}

waited=0
until [ -e "$current/fullchain.pem" ]; do
    if [ "$waited" -ge 60 ]; then
        echo "there is no certificate after 60 s; see the log of the letsencrypt service" >&2
        exit 1
    fi
    waited=$((waited + 1))
    sleep 1
done
served=$(readlink "$current")
render "$served"
nginx -q -t -e /dev/stderr -c "$config"

# the certificate's folder is named after the time at which it was installed, so a new one has another name
(
    while sleep 2; do
        now=$(readlink "$current") || continue
        if [ "$now" != "$served" ]; then
            render "$now"
            if nginx -q -t -e /dev/stderr -c "$config"; then
                nginx -s reload -e /dev/stderr -c "$config"
                served=$now
                echo "switched to the certificate $now" >&2
            else
                # tried again, and logged again, in a minute
                sleep 60
            fi
        fi
    done
) &
exec nginx -e /dev/stderr -c "$config" -g 'daemon off;'
