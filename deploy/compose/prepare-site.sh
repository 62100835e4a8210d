#!/usr/bin/env bash
# Makes what the compose site's daemons need before their first start: the store's key, the writer's identity, authority and certificates,
# the administrator's token, enrolment passphrases. Secrets are made here and live in volumes; no file of the repository has one.
#
# usage: prepare-site.sh SITE CONFIG       SITE has a volume for each purpose, CONFIG the four configurations
#
# Called by the service `prepare` of compose.yaml, as root, at every `up`: what is there stays. Each daemon's command runs as that daemon's
# user. The users' numbers are those of compose.yaml; BLOCKFERRY_BIN and the ..._USER variables are for the tests.
set -euo pipefail

site=${1:?usage: prepare-site.sh SITE CONFIG}
config=${2:?usage: prepare-site.sh SITE CONFIG}
bin=${BLOCKFERRY_BIN:-/usr/lib/blockferry/bin}
daemons_group=${DAEMONS_GROUP:-10000}
sink=${SINK_USER:-10001}
config_server=${CONFIG_SERVER_USER:-10002}
process_server=${PROCESS_SERVER_USER:-10003}
agent=${AGENT_USER:-10004}
operator=${OPERATOR_USER:-10005}
numbers=(1 2) # of process servers and lab servers

as() { # user, command...
    setpriv --reuid="$1" --regid="$daemons_group" --clear-groups "${@:2}"
}
directory() { # name, owner, mode
    install -d -o "$2" -g "$daemons_group" -m "$3" "$site/$1"
}
keep() { # file, owner, mode; the content from standard input, whole or not at all
    local unfinished=$1.unfinished
    (umask 077 && cat >"$unfinished")
    [[ -s $unfinished ]]
    chown "$2:$daemons_group" "$unfinished"
    chmod "$3" "$unfinished"
    mv "$unfinished" "$1"
}

directory store 0 0750
directory operator "$operator" 0700
directory sink "$sink" 0700
directory sink-tls "$sink" 0700
directory config-server "$config_server" 0700
for number in "${numbers[@]}"; do
    directory "process-server-$number" "$process_server" 0700
    directory "process-server-$number-enrolment" "$process_server" 0700
    directory "lab-server-$number" "$agent" 0700
    directory "lab-server-$number-enrolment" "$agent" 0700
    directory "lab-disk-$number" "$agent" 0700
done

if [[ ! -e $site/store/store.key ]]; then
    head -c 32 /dev/urandom | base64 | keep "$site/store/store.key" 0 0640
fi
as "$sink" "$bin/azure-sink" init --config "$config/azure-sink.yaml" | keep "$site/store/writer.pub" 0 0644

first_token=()
if [[ ! -e $site/operator/token ]]; then
    first_token=(--administrator operator --token-file "$site/config-server/first-token")
fi
as "$config_server" "$bin/config-server" init --config "$config/config-server.yaml" "${first_token[@]}"
if [[ -e $site/config-server/first-token ]]; then
    keep "$site/operator/token" "$operator" 0600 <"$site/config-server/first-token"
    rm "$site/config-server/first-token"
fi
authorities=$(as "$config_server" "$bin/config-server" show-authority --config "$config/config-server.yaml")
fingerprint=$(as "$config_server" "$bin/config-server" show-fingerprint --config "$config/config-server.yaml")
for place in store operator; do
    keep "$site/$place/authorities.pem" 0 0644 <<<"$authorities"
done

if [[ ! -e $site/sink-tls/certificate.pem ]]; then
    issued=$site/config-server/issued-for-sink
    rm -rf "$issued"
    as "$config_server" "$bin/config-server" issue-certificate --config "$config/config-server.yaml" --dns sink --out "$issued"
    for file in key.pem authorities.pem certificate.pem; do
        keep "$site/sink-tls/$file" "$sink" 0600 <"$issued/$file"
    done
    rm -rf "$issued"
fi

enrolment() { # name, role that its passphrase is for, its user
    local place=$site/$1-enrolment
    keep "$place/fingerprint" "$3" 0600 <<<"$fingerprint"
    # valid for five days, and needed once
    if [[ ! -e $site/$1/identity/certificate.pem && -z $(find "$place" -name passphrase -mmin -$((4 * 24 * 60))) ]]; then
        as "$config_server" "$bin/config-server" create-enrolment-passphrase --config "$config/config-server.yaml" --role "$2" |
            keep "$place/passphrase" "$3" 0600
    fi
}
for number in "${numbers[@]}"; do
    enrolment "process-server-$number" process-server "$process_server"
    enrolment "lab-server-$number" agent "$agent"
done
echo "prepared; the authority's fingerprint is $fingerprint"
