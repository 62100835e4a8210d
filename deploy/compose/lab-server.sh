#!/usr/bin/env bash
# The lab server of the compose site: a plain file as disk, something that writes to it, and the agent with its quiesce hooks.
#
# usage: lab-server.sh agent | workload | hold | release
#
# Called by compose.yaml (agent, workload) and by the agent (hold before a recovery point, release after it), all as the agent's user.
# hold waits until the workload says, with the file `held`, that it does not write; a workload that ended leaves `held` behind.
set -euo pipefail

here=$(dirname "${BASH_SOURCE[0]}")
lab=${BLOCKFERRY_LAB:-/site/lab-disk}
disk=$lab/disk.img
blocks=4096 # of 64 KiB: 256 MiB

make_disk() {
    if [[ ! -e $disk ]]; then
        truncate -s $((blocks * 65536)) "$disk.unfinished"
        # Several start at the same time: the first one's file is everybody's.
        ln "$disk.unfinished" "$disk" 2>/dev/null || true
        rm -f "$disk.unfinished"
    fi
}

case ${1:-} in
agent)
    make_disk
    # /etc/machine-id leads to this file: containers of one image must differ.
    identifier=/site/agent/machine-id
    [[ -s $identifier ]] || tr -d - </proc/sys/kernel/random/uuid >"$identifier"
    exec "$here/enrol-and-run.sh" mobility-agent /etc/blockferry/agent.yaml /site/agent /site/agent-enrolment
    ;;
workload)
    make_disk
    trap 'touch "$lab/held"' EXIT
    trap 'exit 0' TERM INT
    rm -f "$lab/held"
    while true; do
        if [[ -e $lab/hold ]]; then
            touch "$lab/held"
            while [[ -e $lab/hold ]]; do sleep 0.1; done
            rm -f "$lab/held"
        fi
        dd if=/dev/urandom of="$disk" bs=64K count=1 seek=$((RANDOM % blocks)) conv=notrunc,fsync status=none
        sleep 0.2
    done
    ;;
hold)
    touch "$lab/hold"
    until [[ -e $lab/held ]]; do sleep 0.1; done
    ;;
release)
    rm -f "$lab/hold"
    ;;
*)
    echo 'usage: lab-server.sh agent | workload | hold | release' >&2
    exit 2
    ;;
esac
