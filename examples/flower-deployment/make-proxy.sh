#!/bin/sh
# Writes the configuration of the proxy in front of the SuperLink, for nginx's conf.d, to stdout.
#
# The SuperLink serves all its APIs on one port, and only the Fleet API asks who is calling: whoever
# reaches the others can start a run, which is to execute code on every node. So only the Fleet API
# is passed on; all else is answered with 403.
set -eu

: "${FLEET_HOST:?the name under which SuperNodes reach this machine}"
: "${FLEET_PORT:=9092}" "${SUPERLINK_PORT:=8000}" "${CERTIFICATES:=/etc/skymask}"

cat <<END
server {
    listen $FLEET_PORT ssl;
    server_name $FLEET_HOST;

    ssl_certificate     $CERTIFICATES/server.crt;
    ssl_certificate_key $CERTIFICATES/server.key;
    ssl_protocols       TLSv1.2 TLSv1.3;

    # Flower sends arrays in pieces of 5 MiB; nginx alone would refuse more than 1 MiB.
    client_max_body_size 16m;

    location /v1/fleet/ {
        limit_except POST { deny all; }
        # With a path here nginx passes the path that it has compared, with dots and escapes undone.
        proxy_pass https://127.0.0.1:$SUPERLINK_PORT/v1/fleet/;
        proxy_ssl_trusted_certificate $CERTIFICATES/ca.crt;
        proxy_ssl_verify on;
        proxy_ssl_name localhost;
        proxy_ssl_server_name on;
    }

    location / {
        return 403;
    }
}
END
