#!/bin/sh
# The key pair of one SuperNode: FOLDER/NAME (stays on the node) and FOLDER/NAME.pub (register it).
#
#     make-node-key.sh FOLDER NAME
set -eu
umask 077

folder=${1:?usage: make-node-key.sh FOLDER NAME}
name=${2:?usage: make-node-key.sh FOLDER NAME}
mkdir -p "$folder"
# Flower takes NIST curves in OpenSSH's format, without a passphrase.
ssh-keygen -q -t ecdsa -b 384 -N "" -C "$name" -f "$folder/$name"
