#!/usr/bin/env bash
# Installs what the tests need of Debian (debian-packages.txt beside this file, and the lists that are named), as far as it is missing.
#
# Called by `make test`. Asks nothing, says what it installs, and touches nothing when all is there. Without root or without apt it
# says what is missing and succeeds: the tests that need it are then skipped with the reason.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

mapfile -t wanted < <(sed -E 's/#.*//; s/[[:space:]]+//g; /^$/d' debian-packages.txt "$@")

if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
    printf 'packages: this is no Debian: install the equivalents of %s, or the tests that need them are skipped\n' "${wanted[*]}"
    exit 0
fi

missing=()
for package in "${wanted[@]}"; do
    status=$(dpkg-query --show --showformat '${db:Status-Status}' "$package" 2>/dev/null || true)
    [[ $status == installed ]] || missing+=("$package")
done
((${#missing[@]})) || exit 0

if ((EUID != 0)); then
    printf 'packages: missing, and not root: the tests that need them are skipped. As root: apt-get install -y %s\n' "${missing[*]}"
    exit 0
fi

export DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=a APT_LISTCHANGES_FRONTEND=none
log=$(mktemp)
trap 'rm -f "$log"' EXIT
apt() { apt-get -q -y -o DPkg::Lock::Timeout=600 -o Acquire::Retries=3 "$@" </dev/null >>"$log" 2>&1; }
update() { # apt waits for dpkg's lock, not for that of the package lists
    for _ in {1..30}; do
        apt update && return
        grep -q 'lists/lock' "$log" || return
        sleep 2
    done
    return 1
}

echo "packages: installing ${missing[*]}"
# Package lists that are missing or stale show as a failed installation: fetch them then, and only then.
if ! apt install --no-install-recommends "${missing[@]}" &&
    ! { update && apt install --no-install-recommends "${missing[@]}"; }; then
    tail -n 15 "$log" >&2
    printf 'packages: cannot install them (see above): the tests that need them are skipped\n' >&2
fi
