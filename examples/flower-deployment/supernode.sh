#!/bin/sh
# Starts the SuperNode with the key of this name; the settings come from the environment.
#
#     supernode.sh NAME
#
# NODE_CONFIG is what the client app finds in `context.node_config`.
set -eu

name=${1:?usage: supernode.sh NAME}
exec flower-supernode \
    --superlink "$FLEET_HOST:${FLEET_PORT:-9092}" \
    --root-certificates "$CERTIFICATES/ca.crt" \
    --auth-supernode-private-key "$KEYS/$name" \
    --host 127.0.0.1 \
    --port "${NODE_PORT:-9094}" \
    --node-config "${NODE_CONFIG:-}"
