#!/usr/bin/env bash
# Proves the set-up where nothing is installed: a bare Debian 12 with git, make, python3 (Debian's own 3.11.2) and python3-venv only.
#
# usage: prove-fresh-debian.sh [MAKE ARGUMENTS]      default: venv unit; also: demo, test, "unit PYTEST_ARGS=..."
#
# Called by `make fresh` and by tests/e2e/test_fresh_debian.py. Needs root and debootstrap. Makes a root directory, clones this
# repository's HEAD into it, and runs make there, in a chroot inside mount and process namespaces of its own: when this script ends,
# however it ends, the kernel ends what ran there and undoes its mounts, and the directory is removed. The debootstrapped root is
# kept (bare-debian.sh): a further run takes no debootstrap.
#
# The way to the registries is this machine's own: its apt mirror and apt's Acquire settings, pip's configuration, the proxy and
# certificate variables, resolv.conf and the CA bundle are passed through.
set -euo pipefail
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

packages=ca-certificates,git,make,python3,python3-venv

fail() { # what, remedy
    printf 'error: cannot prove the set-up on a fresh Debian: %s\nhint:  %s\n' "$1" "$2" >&2
    exit 1
}
((EUID == 0)) || fail 'not root' 'chroot and mount need root'

work=$(mktemp -d "${TMPDIR:-/var/tmp}/blockferry-fresh.XXXXXXXX")
root=$work/root
inside=
tidy() { # the mounts were the namespace's and are gone; if one were not, nothing may be removed
    if [[ -n $inside ]]; then
        kill -KILL "$inside" 2>/dev/null || true
        wait "$inside" 2>/dev/null || true
    fi
    if findmnt --list --noheadings --output TARGET | grep -qF "$work/"; then
        printf 'error: left in place, as something is mounted in it: %s\n' "$work" >&2
    else
        rm -rf --one-file-system "$work"
    fi
}
trap tidy EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

bare=$("$repository/deploy/setup/bare-debian.sh" "$packages")
mkdir "$root"
tar -C "$root" --numeric-owner -xzf "$bare"

# --- the way to the registries ----------------------------------------------------------------------------------------------------
give() { # a file of this machine at the same path in the root, if it is there
    [[ -f $1 ]] || return 0
    mkdir -p "$root$(dirname "$1")"
    cp --dereference "$1" "$root$1"
}
give /etc/resolv.conf
give /etc/hosts
give /etc/ssl/certs/ca-certificates.crt
apt-config dump Acquire >"$root/etc/apt/apt.conf.d/99-as-on-the-host"
pip_configurations=(/etc/pip.conf /etc/xdg/pip/pip.conf "${XDG_CONFIG_HOME:-${HOME:-/root}/.config}/pip/pip.conf" "${HOME:-/root}/.pip/pip.conf")
passed=(HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 "TERM=${TERM:-dumb}")
while IFS= read -r name; do
    [[ $name == PIP_CACHE_DIR ]] && continue
    passed+=("$name=${!name}")
    give "${!name}"
done < <(compgen -e | grep -E '^(PIP_.*|(https?|no|all)_proxy|(HTTPS?|NO|ALL)_PROXY|SSL_CERT_(FILE|DIR)|(REQUESTS|CURL)_CA_BUNDLE|CI|KEEP|HYPOTHESIS_PROFILE|BLOCKFERRY_NO_SKIPS)$')
for file in "${pip_configurations[@]}"; do
    give "$file"
    # certificates and constraints that the configuration names
    while IFS= read -r named; do give "$named"; done < <(sed -nE 's/^[a-z-]+[[:space:]]*=[[:space:]]*(\/.*[^[:space:]])[[:space:]]*$/\1/p' "$file" 2>/dev/null)
done

# --- the clone, and make in it ----------------------------------------------------------------------------------------------------
git clone --quiet --no-hardlinks "file://$repository" "$root/root/blockferry"
echo "fresh: $(git -C "$root/root/blockferry" log -1 --format='commit %h, %s')"

(($#)) || set -- venv unit
printf '%s\0' "${passed[@]}" >"$work/environment"
# SIGKILL for unshare when this shell dies, and from unshare for all that runs in its process namespace.
# In the background, since bash runs traps only between foreground commands.
# shellcheck disable=SC2016  # expanded by the inner shell
setpriv --pdeathsig KILL unshare --mount --propagation private --pid --fork --kill-child bash -euo pipefail -c '
    work=$1 root=$1/root
    shift
    # What else is mounted on this machine stays free to be unmounted there: a copy here would keep it in use.
    while read -r _ _ _ _ escaped _; do
        target=$(printf %b "$escaped")
        case $target/ in / | // | /proc/* | /sys/* | /dev/*) continue ;; esac
        case $root/ in "$target"/*) continue ;; esac
        umount --lazy "$target" 2>/dev/null || true # one that lay below another is gone with it
    done < <(tac /proc/self/mountinfo)
    mount --bind "$root" "$root" # so that / is a mount point there, as on a machine
    mount -t proc proc "$root/proc"
    mount --rbind /sys "$root/sys"
    mount --rbind /dev "$root/dev"
    mapfile -d "" -t passed <"$work/environment"
    exec env -i "${passed[@]}" chroot "$root" bash -c "cd /root/blockferry && python3 --version && exec make \"\$@\"" make "$@"
' inside "$work" "$@" </dev/null &
inside=$!
wait "$inside" || fail "make $* failed in it" 'see the output above'
echo "fresh: make $* succeeded"
