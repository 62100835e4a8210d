"""Installations over SSH on a real machine, broken off at a chosen moment: a copy held half way, an installer killed, a connection cut.

Called by ``tests/packages``. Everything happens inside a ``BootedDebian`` that is appliance and server in one; the moments are found by the
processes that are there, not by the clock.
"""

from __future__ import annotations

import json
from typing import Any, Final

from tests.harness.booted_debian import BootedDebian

PLACE: Final = "/var/lib/blockferry-install"
PROGRAMS: Final = "/usr/lib/blockferry/agent"
# in_place NAME: the processes of that program that work in an installation's directory
_FIND: Final = f"""
in_place() {{
    for process in /proc/[0-9]*; do
        case $(readlink "$process/cwd" || true) in {PLACE}/*) ;; *) continue ;; esac
        case $(readlink "$process/exe" || true) in */$1) echo "${{process##*/}}" ;; esac
    done 2>/dev/null
}}
await() {{ # NAME: the first such process
    tries=6000
    until found=$(in_place "$1" | head -n 1); [ -n "$found" ]; do tries=$((tries - 1)); [ $tries -gt 0 ]; sleep 0.01; done
}}
"""
_UNTIL: Final = """
until_so() { # COMMAND: succeeds within a minute
    tries=300
    until eval "$1"; do tries=$((tries - 1)); [ $tries -gt 0 ]; sleep 0.2; done
}
"""
_SERVED_BY: Final = """
served_by() { # the sshd that serves a process
    at=$1
    until [ "$(cat "/proc/$at/comm")" = sshd ]; do at=$(awk '/^PPid:/ { print $2 }' "/proc/$at/status"); done
    echo "$at"
}
"""
CUT_CONNECTION: Final = (
    f"{_FIND}{_SERVED_BY}await cat; kill -STOP $found; kill -KILL $(served_by $found); kill -CONT $found; echo cut"
)
"""A script that waits for the next copy and cuts its connection half way."""


def newest(machine: BootedDebian) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(machine.run("migratectl installations --json"))["items"][0]
    return answer


def begin(machine: BootedDebian, server: str) -> None:
    machine.run(f"migratectl protect {server} --key-file /root/.ssh/id_ed25519")


def cancel_while_copying(machine: BootedDebian, server: str) -> None:
    """On return it is cancelled and its process server has let go of it; the copy was held half way, and goes on to what is its end."""
    begin(machine, server)
    held = machine.run(f"{_FIND}{_SERVED_BY}await cat; kill -STOP $found; echo $found $(served_by $found)")
    copying, connection = held.split()
    machine.run(f"migratectl cancel-installation {newest(machine)['id']}")
    machine.run(
        f"{_UNTIL}until_so '[ ! -e /proc/{connection} ]'; kill -CONT {copying}; until_so '[ ! -e /proc/{copying} ]'"
    )


def kill_installer(machine: BootedDebian, server: str) -> dict[str, Any]:
    """Without a word, while it unpacks, with everything of it; returns what the installation came to."""
    begin(machine, server)
    # The shells first, and all before any is killed: none shall see another's death, and tidy up.
    machine.run(
        f"{_FIND}await tar; all=; for name in dash bash tar tail gzip; do for each in $(in_place $name); do kill -STOP $each; "
        'all="$all $each"; done; done; kill -KILL $all'
    )
    return ended(machine)


def ended(machine: BootedDebian) -> dict[str, Any]:
    machine.run(f'{_UNTIL}until_so "! migratectl installations --json | grep -m 1 ended_at | grep -q null"')
    return newest(machine)


def left(machine: BootedDebian) -> set[str]:
    """What is on the server of installations, and of programs that are not whole."""
    found = machine.run(
        f"find {PLACE} -mindepth 1 2>/dev/null || true; find {PROGRAMS} -mindepth 1 -maxdepth 1 -name '.*' 2>/dev/null || true"
    )
    return set(found.split())
