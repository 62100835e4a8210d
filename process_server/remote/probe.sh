#!/bin/sh
# Prints what this server is, one NAME=VALUE a line, for process_server/core/probe_output.py, which says what each line means.
#
# Sent by process_server/remote/probe.py over SSH and read by a plain sh: nothing has to be there but POSIX tools, and whatever is missing
# is left out. It changes nothing. Arguments: HOST PORT of each service of the appliance; whether TCP reaches it is tried from here.
# Works unprivileged; as root it also knows the machine's fingerprint. Every value is printable, in one line, and has an end.

LC_ALL=C
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin
export LC_ALL PATH

has() {
    command -v "$1" >/dev/null 2>&1
}

within() { # SECONDS COMMAND…
    if has timeout; then timeout "$@"; else
        shift
        "$@"
    fi
}

say() { # NAME VALUE
    printf '%s=%s\n' "$1" "$(printf '%s' "$2" | tr -c '[:print:]' ' ' | cut -c1-900)"
}

content() { # FILE
    if [ -r "$1" ]; then head -c 900 "$1" 2>/dev/null; fi
}

say_system() {
    say clock "$(date +%s)"
    say uid "$(id -u)"
    say hostname "$(uname -n)"
    say kernel "$(uname -r)"
    say architecture "$(uname -m)"
    for file in /etc/os-release /usr/lib/os-release; do
        if [ -r "$file" ]; then
            say os "$(sed -n 's/^PRETTY_NAME=//p' "$file" | head -n 1)"
            break
        fi
    done
    say cpus "$(getconf _NPROCESSORS_ONLN 2>/dev/null || grep -c '^processor' /proc/cpuinfo)"
    say memory_kib "$(sed -n 's/^MemTotal: *\([0-9]*\) kB.*/\1/p' /proc/meminfo)"
    if [ -d /sys/firmware/efi ]; then say boot uefi; else say boot bios; fi
    for name in sys_vendor product_name board_vendor bios_vendor bios_version chassis_asset_tag; do
        say "dmi_$name" "$(content "/sys/class/dmi/id/$name")"
    done
    if grep -q ' hypervisor' /proc/cpuinfo 2>/dev/null; then say hypervisor 1; fi
    say xen "$(content /sys/hypervisor/type)"
    if [ -e /sys/kernel/btf/vmlinux ]; then say btf 1; fi
    say glibc "$(getconf GNU_LIBC_VERSION 2>/dev/null)"
    if [ -d /run/systemd/system ]; then say systemd 1; fi
}

say_fingerprint() { # made as mobility_agent/block_device/machine_facts.py makes it; the machine id itself does not leave this server
    product=/sys/class/dmi/id/product_uuid
    if [ -e "$product" ] && [ ! -r "$product" ]; then return; fi
    id=$(content /etc/machine-id)
    if [ -z "$id" ]; then id=$(content /var/lib/dbus/machine-id); fi
    case $id in *[!0-9a-f]* | '') return ;; esac
    if [ ${#id} -ne 32 ] || ! has sha256sum; then return; fi
    dashed=$(printf '%s' "$id" | sed 's/^\(.\{8\}\)\(.\{4\}\)\(.\{4\}\)\(.\{4\}\)\(.\{12\}\)$/\1-\2-\3-\4-\5/')
    say fingerprint "$(printf 'blockferry machine %s %s' "$dashed" "$(content "$product" | tr '[:upper:]' '[:lower:]')" |
        sha256sum | cut -d' ' -f1)"
}

say_space() {
    for directory in /usr/lib /var/lib; do
        if [ -d "$directory" ]; then
            say space "$directory $(within 5 df -Pk "$directory" 2>/dev/null | awk 'NR == 2 { print $4 }')"
        fi
    done
}

say_addresses() {
    if has ip; then
        ip -o addr show scope global 2>/dev/null | awk '{ sub("/.*", "", $4); print $4 }'
    else
        hostname -I 2>/dev/null | tr ' ' '\n'
    fi | head -n 64 | while read -r address; do
        if [ -n "$address" ]; then say address "$address"; fi
    done
}

say_blocks() {
    least=NAME,KNAME,PKNAME,TYPE,SIZE,FSTYPE,MOUNTPOINT,ROTA,RO,LOG-SEC
    for columns in "$least,MODEL,SERIAL,PTTYPE,PARTTYPE" "$least,MODEL,SERIAL" "$least"; do
        found=$(within 20 lsblk -P -b -o "$columns" 2>/dev/null | tr -c '[:print:]\n' ' ' | head -n 1500)
        if [ -n "$found" ]; then
            printf '%s\n' "$found" | sed 's/^/block=/'
            break
        fi
    done
    for directory in /sys/block/*; do
        name=${directory##*/}
        case $name in loop* | ram* | zram* | sr* | fd* | '*') continue ;; esac
        mq=0
        if [ -d "$directory/mq" ]; then mq=1; fi
        iostats=$(content "$directory/queue/iostats")
        zoned=$(content "$directory/queue/zoned")
        say queue "$name ${iostats:--} ${zoned:-none} $mq $(content "$directory/size")"
    done
}

say_reach() { # HOST PORT…
    while [ $# -ge 2 ]; do
        result=untested
        if has bash && has timeout; then
            # shellcheck disable=SC2016 # the inner shell reads its own arguments
            complaint=$(timeout 5 bash -c 'exec 3<>"/dev/tcp/$1/$2"' bash "$1" "$2" 2>&1)
            status=$?
            case "$status $complaint" in
            0\ *) result=open ;;
            124\ * | *'timed out'*) result=timed-out ;;
            *refused*) result=refused ;;
            *'not known'* | *'resol'* | *'No address'*) result=unresolved ;;
            *) result=failed ;;
            esac
        elif has nc; then
            if within 6 nc -z -w 5 "$1" "$2" >/dev/null 2>&1; then result=open; else result=failed; fi
        fi
        say reach "$1 $2 $result"
        shift 2
    done
}

main() {
    printf 'blockferry-probe=1\n'
    say_system
    say_fingerprint
    say_space
    say_addresses
    say_blocks
    say_reach "$@"
    printf 'end=1\n'
}

main "$@" </dev/null
