#!/bin/sh
# The agent of Blockferry @VERSION@ for @ARCHITECTURE@ and glibc @OLDEST_GLIBC@ or later: a script, and behind it the programs as a tar.gz.
# Needs nothing on the server but a shell, coreutils, tar, gzip and systemd.
#
# usage: sh @FILE@ [install] --appliance URL --fingerprint FINGERPRINT --passphrase-file FILE [--unattended] [...]
#        sh @FILE@ upgrade          replace the installed version; replication goes on where it was
#        sh @FILE@ check            only: is the file whole, and would it run here
#        sh @FILE@ unpack DIRECTORY only: the programs, into a new directory
set -eu
umask 022

version=@VERSION@
architecture=@ARCHITECTURE@
oldest_glibc=@OLDEST_GLIBC@
payload_sha256=@PAYLOAD_SHA256@
payload_bytes=@PAYLOAD_BYTES@
unpacked_kib=@UNPACKED_KIB@
prefix=/usr/lib/blockferry/agent

fail() { # what, remedy
    printf 'error: cannot install the agent: %s\nhint:  %s\n' "$1" "$2" >&2
    exit 1
}
payload() { tail -c "$payload_bytes" "$installer"; }

installer=$0
[ -r "$installer" ] || fail "$installer cannot be read" 'run it as a file: sh FILE, not from standard input'
command=${1:-install}
case $command in
--help | -h | help)
    sed -n 's/^# \{0,1\}//; 2,8p' "$installer" | sed -n '1,7p'
    exit 0
    ;;
-*) command=install ;;
install | upgrade | check | unpack) [ $# -eq 0 ] || shift ;;
*) fail "there is no command $command" "sh $installer --help" ;;
esac

# ---- would it run here
has=$(uname -m)
[ "$(uname -s)" = Linux ] || fail "this is $(uname -s)" 'the agent runs on Linux'
[ "$has" = "$architecture" ] || fail "this machine is $has, and the file is for $architecture" 'take the file for this architecture'
glibc=$( (getconf GNU_LIBC_VERSION 2>/dev/null || true) | sed -n 's/^glibc //p')
[ -n "$glibc" ] || fail 'there is no glibc' 'the agent runs on distributions with glibc, so not on Alpine'
[ "$(printf '%s\n%s\n' "$oldest_glibc" "$glibc" | sort -t. -k1,1n -k2,2n | head -n 1)" = "$oldest_glibc" ] ||
    fail "glibc is $glibc, and $oldest_glibc or later is needed" "upgrade the distribution, or take a file that was built on an older one"
[ "$(payload | sha256sum | cut -d ' ' -f 1)" = "$payload_sha256" ] || fail "$installer is damaged" 'download it again'
if [ "$command" = check ]; then
    echo "the agent $version for $architecture and glibc $oldest_glibc or later: it is whole and runs here (glibc $glibc)"
    exit 0
fi

unpack() { # into a directory that appears whole or not at all
    parent=$(dirname "$1")
    mkdir -p "$parent"
    for left in "$parent"/.unfinished-*; do # of one that was killed
        [ ! -d "$left" ] || kill -0 "${left##*-}" 2>/dev/null || rm -rf "$left"
    done
    free_kib=$(df -Pk "$parent" | awk 'NR == 2 { print $4 }')
    [ "$free_kib" -gt $((unpacked_kib + 16384)) ] ||
        fail "$parent has $((free_kib / 1024)) MiB free, and $((unpacked_kib / 1024 + 16)) are needed" 'free some space there'
    unfinished=$parent/.unfinished-$$
    trap 'rm -rf "$unfinished"' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    mkdir "$unfinished"
    payload | tar -xzf - -C "$unfinished" --no-same-owner
    sync "$unfinished" 2>/dev/null || sync
    mv -T "$unfinished" "$1"
    trap - EXIT INT TERM HUP
}

if [ "$command" = unpack ]; then
    [ $# -eq 1 ] || fail 'no directory was given' "sh $installer unpack DIRECTORY"
    [ ! -e "$1" ] || fail "$1 is there already" 'name a new directory'
    unpack "$1"
    exit 0
fi

[ "$(id -u)" -eq 0 ] || fail 'not root' "sudo sh $installer $command ..."
[ ! -e /var/lib/dpkg/info/blockferry-agent.list ] || fail 'it is installed as a Debian package' 'upgrade the package with apt, or purge it first'
if [ ! -x "$prefix/$version/bin/mobility-agent" ]; then
    unpack "$prefix/$version"
    # Under SELinux, programs are labelled by their place.
    if command -v restorecon >/dev/null; then restorecon -R "$prefix" || true; fi
fi
[ "$command" != upgrade ] || set -- --activate "$@"
exec "$prefix/$version/bin/mobility-agent" "$command" "$@"
exit 1
# What follows is the payload.
