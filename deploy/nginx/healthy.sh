#!/bin/sh
# Docker's health check: whether nginx answers over HTTPS with its own page.
set -eu
body=$(curl --silent --show-error --insecure --max-time 8 --resolve "$BUSCO_DOMAIN:443:127.0.0.1" \
    "https://$BUSCO_DOMAIN/-/proxy")
[ "$body" = "busco proxy" ]
