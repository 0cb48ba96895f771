#!/bin/sh
# A certificate authority for this federation and the SuperLink's certificate, signed by it.
#
#     make-certificates.sh FOLDER HOST...
#
# HOST... are the names and IPv4 addresses under which SuperNodes reach the SuperLink or the proxy
# in front of it. localhost and 127.0.0.1 are always added: the proxy and `flwr` use them.
# Written to FOLDER: ca.key (keep it off the server), ca.crt (every SuperNode needs it),
# server.key and server.crt. An authority that is there already is used again.
set -eu
umask 077

folder=${1:?usage: make-certificates.sh FOLDER HOST...}
shift
mkdir -p "$folder"
cd "$folder"

names=
for host in localhost 127.0.0.1 "$@"; do
    case $host in
        *[!0-9.]*) names="$names,DNS:$host" ;;
        *) names="$names,IP:$host" ;;
    esac
done

if [ ! -e ca.key ]; then
    openssl ecparam -name secp384r1 -genkey -noout -out ca.key
    openssl req -x509 -new -key ca.key -sha384 -days 3650 -out ca.crt \
        -subj "/CN=Federation CA" \
        -addext "basicConstraints=critical,CA:TRUE,pathlen:0" \
        -addext "keyUsage=critical,keyCertSign,cRLSign"
fi

openssl ecparam -name secp384r1 -genkey -noout -out server.key
openssl req -new -key server.key -sha384 -subj "/CN=SuperLink" -out server.csr
cat > server.ext <<END
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectAltName = ${names#,}
END
openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -sha384 -days 365 \
    -extfile server.ext -out server.crt
rm server.csr server.ext
chmod 644 ca.crt server.crt
