#!/bin/sh
# Starts the SuperLink; the settings come from the environment (skymask.env).
#
# It listens on the loopback interface only: the Control API on the same port takes no credentials.
set -eu

exec flower-superlink \
    --host 127.0.0.1 \
    --port "${SUPERLINK_PORT:-8000}" \
    --ssl-ca-certfile "$CERTIFICATES/ca.crt" \
    --ssl-certfile "$CERTIFICATES/server.crt" \
    --ssl-keyfile "$CERTIFICATES/server.key" \
    --enable-supernode-auth \
    --disable-runtime-dependency-installation \
    --database "$STATE/superlink.db"
