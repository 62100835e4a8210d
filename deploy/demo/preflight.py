"""Before anything is started: is there enough disk space and memory, and are ports free? Says what is missing and what to do.

Called by ``__main__`` and ``site``, and by tests that start daemons. Touches nothing.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Final

GIB: Final = 2**30
NEEDED_DISK_BYTES: Final = 12 * GIB
NEEDED_MEMORY_BYTES: Final = 1 * GIB
_PORT_RANGE: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")


@dataclass(frozen=True, slots=True)
class Preflight:
    """``problems`` is empty if the demo can run; ``is_root`` decides its mode."""

    is_root: bool
    problems: tuple[str, ...]


def check(directory: Path) -> Preflight:
    problems = []
    directory.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(directory).free
    if free < NEEDED_DISK_BYTES:
        problems.append(
            f"{directory} has {free / GIB:.1f} GiB free, {NEEDED_DISK_BYTES / GIB:.0f} GiB are needed: "
            "make room, or choose another directory with DEMO_DIR=…"
        )
    available = available_memory_bytes()
    if available < NEEDED_MEMORY_BYTES:
        problems.append(
            f"{available / GIB:.1f} GiB of memory are available, {NEEDED_MEMORY_BYTES / GIB:.0f} GiB are needed"
        )
    return Preflight(os.geteuid() == 0, tuple(problems))


def available_memory_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return 0


def lasting_ports(count: int) -> list[int]:
    """Free unprivileged loopback ports that the kernel gives to no outgoing connection while their daemon is dead: they lie below
    ``ip_local_port_range``.

    :raises OSError: if none are found.
    """
    first = int(_PORT_RANGE.read_text().split()[0])
    found: list[int] = []
    for _ in range(100 * count):
        port = random.randrange(max(first // 2, 1024), first)  # noqa: S311 -- no secret
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found += [port] if port not in found else []
        if len(found) == count:
            return found
    raise OSError(
        f"cannot find {count} free ports below {first}, where outgoing connections begin (ip_local_port_range)"
    )
