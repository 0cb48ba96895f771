#!/bin/sh
# Puts scripts, certificates, settings and the systemd unit in place, on the machine that it runs on.
#
#     install.sh superlink FOLDER          FOLDER has ca.crt, server.crt and server.key
#     install.sh supernode FOLDER NAME     FOLDER has ca.crt, and NAME, the node's private key
#
# ROOT is put in front of every path: empty for this machine, or a folder to try it in.
# BIN is the folder of the `flower-superlink` and `flower-supernode` commands.
set -eu
umask 077

usage="usage: install.sh superlink FOLDER | install.sh supernode FOLDER NAME"
role=${1:?$usage}
from=${2:?$usage}
here=$(dirname "$0")
root=${ROOT:-}
name=

case $role in
    superlink) files="ca.crt server.crt server.key" unit=$role ;;
    supernode) name=${3:?$usage} files="ca.crt $name" unit=$role-$name ;;
    *) echo "$usage" >&2; exit 2 ;;
esac

state=$root/var/lib/skymask-$unit
install -d -m 755 "$root/etc/skymask" "$root/opt/skymask"
install -m 755 "$here/$role.sh" "$root/opt/skymask"
for file in $files; do
    install -m 600 "$from/$file" "$root/etc/skymask"
done
install -D -m 644 -t "$root/etc/systemd/system" "$here/systemd/skymask-$role"*.service

cat > "$root/etc/skymask/$unit.env" <<END
# No telemetry, no look for updates, no installing of what an app asks for.
FLWR_TELEMETRY_ENABLED=0
FLWR_DISABLE_UPDATE_CHECK=1
FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1
RAY_USAGE_STATS_ENABLED=0
PATH=${BIN:-/opt/skymask/venv/bin}:/usr/bin:/bin
CERTIFICATES=$root/etc/skymask
KEYS=$root/etc/skymask
STATE=$state
FLWR_HOME=$state/flower
SKYMASK_DATA=${SKYMASK_DATA:-$state/data}
END
if [ "$role" = superlink ]; then
    echo "SUPERLINK_PORT=${SUPERLINK_PORT:-8000}"
else
    echo "FLEET_HOST=$FLEET_HOST"
    echo "FLEET_PORT=${FLEET_PORT:-9092}"
    echo "NODE_PORT=${NODE_PORT:-9094}"
    echo "NODE_CONFIG='${NODE_CONFIG:-}'"
fi >> "$root/etc/skymask/$unit.env"

# With systemd the unit makes its state folder; without it, here.
[ -z "$root" ] || install -d -m 700 "$state"
