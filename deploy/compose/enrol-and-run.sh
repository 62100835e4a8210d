#!/usr/bin/env bash
# Enrols a process server or an agent with what prepare-site.sh left for it, unless it has an identity, and runs it.
#
# usage: enrol-and-run.sh PROGRAM CONFIGURATION STATE ENROLMENT
#
# Called by compose.yaml (process server) and lab-server.sh (agent), as the daemon's user. A failure ends the container, which is started again.
set -euo pipefail

program=${BLOCKFERRY_BIN:-/usr/lib/blockferry/bin}/$1
configuration=$2 state=$3 enrolment=$4

if [[ ! -e $state/identity/certificate.pem ]]; then
    "$program" enrol --config "$configuration" --fingerprint "$(<"$enrolment/fingerprint")" --passphrase-file "$enrolment/passphrase"
fi
exec "$program" run --config "$configuration"
