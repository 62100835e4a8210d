#!/usr/bin/env bash
# Installs what systemd needs to run daemons from /usr/lib/blockferry: units, users, directories, and the sample configuration where there
# is none. Starts and enables nothing. May be repeated: a configuration that is there stays as it is. docs/operations/install.md calls
# this, as root.
#
# usage: install.sh [--root DIRECTORY] ROLE...      ROLE: agent, azure-sink, config-server, process-server
set -euo pipefail

root=
if [[ ${1:-} == --root ]]; then
    root=$(realpath --canonicalize-missing "${2:?--root needs a directory}")
    [[ $root != / ]] || root=
    shift 2
fi
cd "$(dirname "${BASH_SOURCE[0]}")"
if (($# == 0)); then
    echo 'usage: install.sh [--root DIRECTORY] agent|azure-sink|config-server|process-server ...' >&2
    exit 2
fi

for role in "$@"; do
    if [[ ! $role =~ ^[a-z-]+$ || ! -e blockferry-$role.service ]]; then
        echo "error: there is no role $role" >&2
        exit 2
    fi
done

for role in "$@"; do
    install -D -m 644 "blockferry-$role.service" "$root/etc/systemd/system/blockferry-$role.service"
    install -D -m 644 "sysusers.d/blockferry-$role.conf" "$root/etc/sysusers.d/blockferry-$role.conf"
    install -D -m 644 "tmpfiles.d/blockferry-$role.conf" "$root/etc/tmpfiles.d/blockferry-$role.conf"
    systemd-sysusers --root="$root/" "$root/etc/sysusers.d/blockferry-$role.conf"
    systemd-tmpfiles --root="$root/" --create "$root/etc/tmpfiles.d/blockferry-$role.conf"
    configuration=$root/etc/blockferry/$role.yaml
    if [[ ! -e $configuration ]]; then
        # The group is the directory's: by number, as it need not be this machine's.
        install -m 640 -g "$(stat -c %g "$root/etc/blockferry")" "../config/$role.yaml" "$configuration"
        echo "wrote $configuration: a sample, to be edited"
    fi
    if [[ $role == config-server || $role == process-server ]]; then
        install -D -m 644 blockferry-replication-appliance.target "$root/etc/systemd/system/blockferry-replication-appliance.target"
    fi
done
if [[ -z $root && -d /run/systemd/system ]]; then
    systemctl daemon-reload
fi
