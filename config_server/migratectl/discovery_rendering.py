"""How discoveries and discovered servers look on a terminal. Called by ``discovery_commands.py`` and ``site_commands.py``."""

from __future__ import annotations

from typing import Final

from rich.console import Console
from rich.text import Text

from config_server.discovery_plane import DiscoveryHostStatus, DiscoveryStatus
from config_server.migratectl.rendering import Cell, size, table
from config_server.operator_plane import ServerDetail

_STYLES: Final = {"found": "green", "failed": "red", "host-key-changed": "red", "host-key-unknown": "yellow"}


def host_rows(run: DiscoveryStatus) -> list[list[Cell]]:
    return [
        [
            host.address if host.port == 22 else f"{host.address} port {host.port}",
            Text(host.state, style=_STYLES.get(host.state, "")),
            host.offered_host_key or "-",
            "" if host.problem is None else host.problem.message,
            "" if host.problem is None else host.problem.hint or "",
        ]
        for host in run.hosts
    ]


def tell_run(console: Console, run: DiscoveryStatus) -> None:
    console.print(table("HOST", "STATE", "HOST KEY", "PROBLEM", "REMEDY", rows=host_rows(run)))
    for host in run.hosts:
        if host.state == "host-key-unknown" and host.offered_host_key is not None:
            command = f"migratectl servers accept-host-key {host.address} {host.offered_host_key}"
            console.print(command, soft_wrap=True, highlight=False)
    found = sum(host.state == "found" for host in run.hosts)
    silent = f"; {run.silent} addresses of ranges do not answer" if run.silent else ""
    console.print(f"{found} of {run.total} found{silent}" + (f": {run.message}" if run.message else ""))


def host_line(host: DiscoveryHostStatus) -> str:
    return f"{host.address}: {host.state}" + ("" if host.problem is None else f": {host.problem.message}")


def tell_discovery(console: Console, found: ServerDetail) -> None:
    """What was found over SSH, ahead of what the agent says if there is one."""
    reference, facts = found.server.discovery, found.discovered
    if reference is not None:
        console.print(
            f"discovered at {reference.address} port {reference.port}, {reference.looked_at or 'not looked at yet'}; "
            f"host key {reference.host_key or 'not accepted'}"
            + ("" if reference.offered_host_key is None else f", shows {reference.offered_host_key} now")
        )
    if facts is None or found.inventory is not None:
        return
    console.print(f"{facts.hostname}: {facts.operating_system}, kernel {facts.kernel}, {facts.platform}")
    console.print(
        f"{facts.cpu_count} CPUs, {size(facts.memory_bytes)}, {facts.architecture}, {facts.boot_type}, "
        f"{', '.join(facts.addresses)}"
    )
    rows: list[list[Cell]] = [
        [
            disk.path,
            size(disk.size_bytes),
            ", ".join(disk.content),
            ", ".join(mount.mount_point for mount in disk.mounts),
            disk.not_protectable or "can be protected",
        ]
        for disk in facts.disks
    ]
    console.print(table("DISK", "SIZE", "CONTENT", "MOUNTED", "PROTECTION", rows=rows))
