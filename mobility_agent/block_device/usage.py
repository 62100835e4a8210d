"""Who uses a disk right now: mounts (of other namespaces too), swap, volumes and arrays on it, loop devices, processes with it open.

Called by claims, to name what is in the way, and by the listing. Reads /proc and /sys only.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mobility_agent.block_device.device_tree import DeviceTree
from mobility_agent.block_device.mount_table import MountEntry, read_mounts, read_swaps

_PROC: Final = Path("/proc")
_SYSFS: Final = Path("/sys")
_ACCESS_MODE: Final = 0o3
MAX_NAMESPACES: Final = 256
"""So many mount tables of other namespaces are read at most: each may have thousands of lines."""
MAX_FOREIGN_MOUNTS: Final = 8
"""So many are named at most."""


@dataclass(frozen=True, slots=True)
class OpenBy:
    """A process that has the disk open."""

    process_id: int
    command: str
    writes: bool


@dataclass(frozen=True, slots=True)
class MountedBy:
    """A process, the first one found in its mount namespace, that keeps a file system of the disk mounted where we cannot see it."""

    process_id: int
    command: str
    mount: MountEntry


def mounts_on(tree: DeviceTree, disk_name: str, mounts: list[MountEntry]) -> list[MountEntry]:
    """Mounts whose file system lies on the disk, directly or through what stands on it."""
    names = tree.sharing_btrfs({node.name for node in tree.standing_on(disk_name)})
    numbers = {tree.nodes[name].number for name in names if name in tree.nodes}
    return [mount for mount in mounts if mount.device in numbers or mount.source_device in numbers]


def uses_of_device(tree: DeviceTree, disk_name: str) -> list[str]:
    """What has to end before the disk can be claimed, one phrase each."""
    found = [f"{mount.source} is mounted on {mount.mount_point}" for mount in mounts_on(tree, disk_name, read_mounts())]
    names = {node.number: node.name for node in tree.standing_on(disk_name)}
    found += [f"{path} is in use as swap" for path, number in read_swaps() if number in names]
    for node in tree.standing_on(disk_name):
        if node.slaves:
            label = node.attribute("dm/name") or node.name
            found.append(f"{label} ({node.name}) stands on {', '.join(node.slaves)}")
    found += [
        f"{there.mount.source} is mounted on {there.mount.mount_point} in the mount namespace of {there.command} "
        f"(process {there.process_id})"
        for there in itertools.islice(mounts_elsewhere(tree, disk_name), MAX_FOREIGN_MOUNTS)
    ]
    return found


def mounts_elsewhere(tree: DeviceTree, disk_name: str, proc: Path = _PROC) -> Iterator[MountedBy]:
    """Mounts of the disk in other mount namespaces, each namespace's once, as far as this user may see (containers, services with a view
    of their own). A file system that was unmounted here may still be mounted there.
    """
    known = {_namespace_of(proc / "self")}
    for directory in _processes(proc):
        namespace = _namespace_of(directory)
        if namespace is None or namespace in known:
            continue
        known.add(namespace)
        if len(known) > MAX_NAMESPACES + 1:
            return
        with contextlib.suppress(OSError):  # ended meanwhile
            mounts = read_mounts(proc, directory.name)
            command = (directory / "comm").read_text().strip()
            for mount in mounts_on(tree, disk_name, mounts):
                yield MountedBy(int(directory.name), command, mount)


def _namespace_of(process: Path) -> str | None:
    try:
        return os.readlink(process / "ns/mnt")
    except OSError:  # ended meanwhile, or another user's
        return None


def _processes(proc: Path) -> list[Path]:
    """Oldest numbers first: a namespace is then named after the process that made it, rather than after one of its children."""
    return sorted((path for path in proc.iterdir() if path.name.isdigit()), key=lambda path: int(path.name))


def loop_devices_over(file: Path, sysfs: Path = _SYSFS) -> list[str]:
    """Loop devices whose backing file is ``file``."""
    wanted = os.path.realpath(file)
    found = []
    for backing in sorted((sysfs / "block").glob("loop*/loop/backing_file")):
        with contextlib.suppress(OSError):
            if backing.read_text().strip() == wanted:
                found.append(f"/dev/{backing.parts[-3]}")
    return found


def open_by(path: Path, proc: Path = _PROC) -> Iterator[OpenBy]:
    """Other processes that have ``path`` open, as far as this user may see."""
    wanted = os.stat(path)
    for directory in _processes(proc):
        if int(directory.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):  # ended meanwhile, or another user's
            for descriptor in (directory / "fd").iterdir():
                with contextlib.suppress(OSError):
                    found = descriptor.stat()
                    same_device = wanted.st_rdev and found.st_rdev == wanted.st_rdev
                    if not same_device and not os.path.samestat(found, wanted):
                        continue
                    flags = (directory / "fdinfo" / descriptor.name).read_text().split("flags:")[1].split()[0]
                    command = (directory / "comm").read_text().strip()
                    yield OpenBy(int(directory.name), command, bool(int(flags, 8) & _ACCESS_MODE))
                    break
