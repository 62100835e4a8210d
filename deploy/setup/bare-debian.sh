#!/usr/bin/env bash
# Prints the path of a bare Debian 12 root as a tar.gz, made by debootstrap when it is not there yet.
#
# usage: bare-debian.sh PACKAGE,PACKAGE...      what it has beyond Debian's minimal base
#
# Called by prove-fresh-debian.sh, by deploy/packaging (the programs' interpreter is Debian's) and by the tests that boot a Debian.
# Kept in ${BLOCKFERRY_CACHE:-~/.cache/blockferry}, one file for each list of packages (130 MB): a further call takes no debootstrap.
# Needs root and debootstrap. The first Debian mirror that apt knows is used, by apt's own proxy settings.
set -euo pipefail

suite=bookworm
packages=${1:?usage: bare-debian.sh PACKAGE,PACKAGE...}
cache=${BLOCKFERRY_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/blockferry}

fail() { # what, remedy
    printf 'error: cannot make a bare Debian: %s\nhint:  %s\n' "$1" "$2" >&2
    exit 1
}
architecture=$(dpkg --print-architecture) || fail 'this is no Debian (there is no dpkg)' 'run it on Debian or Ubuntu'
bare=$cache/$suite-$architecture-$(printf '%s' "$packages" | cksum | cut -d' ' -f1).tar.gz
mkdir -p "$cache"

exec 9>"$cache/lock"
flock 9
if [[ ! -s $bare ]]; then
    ((EUID == 0)) || fail 'not root' 'debootstrap needs root'
    command -v debootstrap >/dev/null || fail 'there is no debootstrap' 'apt-get install -y debootstrap'
    work=$(mktemp -d "${TMPDIR:-/var/tmp}/blockferry-bare.XXXXXXXX")
    trap 'rm -rf --one-file-system "$work"' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    # The first Debian mirror that apt knows; without one, debootstrap's own default.
    # shellcheck disable=SC2016  # apt expands it
    mirror=$(apt-get indextargets --format '$(REPO_URI) $(ORIGIN) $(COMPONENT)' 'Created-By: Packages' 2>/dev/null |
        awk '$2 == "Debian" && $3 == "main" && $1 !~ /security/ { print $1; exit }' || true)
    echo "bare: debootstrap $suite ($packages)" >&2
    # debootstrap fetches with wget, which knows proxies by environment only
    eval "$(apt-config shell apt_http_proxy Acquire::http::Proxy apt_https_proxy Acquire::https::Proxy)"
    http_proxy=${http_proxy:-${apt_http_proxy:-}} https_proxy=${https_proxy:-${apt_https_proxy:-}} \
        debootstrap --variant=minbase --include="$packages" "$suite" "$work/bare" ${mirror:+"$mirror"} >"$work/debootstrap.log" 2>&1 || {
        tail -n 15 "$work/debootstrap.log" "$work"/bare/debootstrap/debootstrap.log >&2 || true
        fail 'debootstrap failed (its last words are above)' 'is the Debian mirror reachable? Then run the same command again'
    }
    rm -rf "$work"/bare/var/cache/apt/archives/*.deb
    tar -C "$work/bare" --numeric-owner -cf - . | gzip -1 >"$bare.new.$$"
    mv "$bare.new.$$" "$bare"
fi
printf '%s\n' "$bare"
